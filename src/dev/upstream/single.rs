//! Routes that answer at once: embeddings, images, audio, moderation, reranking.

use axum::body::Bytes;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header;
use serde_json::{Value, json};

use super::answer::{text_of, tokens};
use super::call::{Call, LiteLlmError};

/// A transparent PNG of one pixel.
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
/// The head of one silent MPEG frame.
const SILENCE: &[u8] = &[0xff, 0xfb, 0x90, 0x64, 0x00, 0x00, 0x00, 0x00];
/// Bytes of audio that count as a second: 128 kbit/s.
const BYTES_PER_SECOND: u64 = 16_000;
/// The size of text-embedding-3-small's vectors, and the largest one answered.
const DIMENSIONS: (u64, u64) = (1_536, 3_072);

/// `POST /v1/embeddings`
pub(super) async fn embeddings(call: Call) -> Result<Response, LiteLlmError> {
    let input = call.required("input")?;
    let inputs: Vec<&Value> = match input {
        Value::Array(items) if !items.iter().all(Value::is_number) => items.iter().collect(),
        one => vec![one],
    };
    let count = |input: &Value| match input {
        Value::Array(tokens) => tokens.len() as u64,
        text => tokens(text_of(text).len()),
    };
    let read: u64 = inputs.iter().map(|input| count(input)).sum();
    let dimensions = call.body.get("dimensions").and_then(Value::as_u64).unwrap_or(DIMENSIONS.0).min(DIMENSIONS.1);
    let as_text = call.body.get("encoding_format").and_then(Value::as_str) == Some("base64");
    let embed = |(index, input): (usize, &&Value)| {
        let vector = vector(&input.to_string(), dimensions);
        let embedding = if as_text {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            json!(STANDARD.encode(bytes))
        } else {
            json!(vector)
        };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    };
    let data: Vec<Value> = inputs.iter().enumerate().map(embed).collect();
    let usage = json!({"prompt_tokens": read, "completion_tokens": 0, "total_tokens": read});
    let body = json!({"object": "list", "model": call.alias, "data": data, "usage": usage});
    Ok(call.json(body, &[("input_cost_per_token", read)]))
}

/// A vector of length 1 that depends on the text alone.
fn vector(text: &str, dimensions: u64) -> Vec<f32> {
    // FNV-1a seeds a xorshift generator: the same on every platform and release.
    let seed = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mut state = seed | 1;
    let raw: Vec<f32> = (0..dimensions)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            f32::from((state >> 48) as u16) - 32_767.5
        })
        .collect();
    let length = raw.iter().map(|value| value * value).sum::<f32>().sqrt();
    raw.into_iter().map(|value| value / length).collect()
}

/// `POST /v1/images/generations` and `/v1/images/edits`
pub(super) async fn images(call: Call) -> Result<Response, LiteLlmError> {
    let prompt = tokens(text_of(call.required("prompt")?).len());
    let asked = call.body.get("n").and_then(|n| n.as_u64().or_else(|| n.as_str()?.parse().ok()));
    let count = asked.unwrap_or(1).clamp(1, 10);
    let data: Vec<Value> =
        (0..count).map(|_| json!({"b64_json": PIXEL, "revised_prompt": null, "url": null})).collect();
    let usage = json!({"input_tokens": prompt, "output_tokens": 0, "total_tokens": prompt});
    let body = json!({"created": call.shared.now(), "data": data, "usage": usage});
    Ok(call.json(body, &[("input_cost_per_image", count)]))
}

/// `POST /v1/audio/speech`
pub(super) async fn speech(call: Call) -> Result<Response, LiteLlmError> {
    let characters = text_of(call.required("input")?).chars().count() as u64;
    let audio = ([(header::CONTENT_TYPE, "audio/mpeg")], Bytes::from_static(SILENCE));
    Ok(call.complete(audio, &[("input_cost_per_character", characters)]))
}

/// `POST /v1/audio/transcriptions`
pub(super) async fn transcriptions(call: Call) -> Result<Response, LiteLlmError> {
    let bytes = call.required("file")?.as_u64().unwrap_or(0);
    let seconds = bytes.div_ceil(BYTES_PER_SECOND).max(1);
    let text = format!("A recording of {bytes} bytes.");
    let body = json!({"text": text, "usage": {"type": "duration", "seconds": seconds}});
    Ok(call.json(body, &[("input_cost_per_second", seconds)]))
}

/// `POST /v1/moderations`: whoever writes "attack" is flagged.
pub(super) async fn moderations(call: Call) -> Result<Response, LiteLlmError> {
    let input = call.required("input")?;
    let inputs: Vec<&Value> = input.as_array().map_or_else(|| vec![input], |items| items.iter().collect());
    let judge = |input: &&Value| {
        let flagged = text_of(input).to_lowercase().contains("attack");
        let score = if flagged { 0.9 } else { 0.01 };
        json!({
            "flagged": flagged,
            "categories": {"violence": flagged, "hate": false, "self-harm": false, "sexual": false},
            "category_scores": {"violence": score, "hate": 0.01, "self-harm": 0.01, "sexual": 0.01},
        })
    };
    let results: Vec<Value> = inputs.iter().map(judge).collect();
    let body = json!({"id": call.shared.fresh("modr-"), "model": call.alias, "results": results});
    Ok(call.json(body, &[]))
}

/// `POST /v1/rerank`: by the share of the query's words that a document has.
pub(super) async fn rerank(call: Call) -> Result<Response, LiteLlmError> {
    let query = text_of(call.required("query")?).to_lowercase();
    let words: Vec<&str> = query.split_whitespace().collect();
    let documents = call.required("documents")?.as_array().map(Vec::as_slice).unwrap_or_default();
    let score = |document: &Value| {
        let text = text_of(document).to_lowercase();
        let found = words.iter().filter(|word| text.contains(**word)).count();
        found as f64 / words.len().max(1) as f64
    };
    let mut ranked: Vec<(usize, f64)> = documents.iter().map(score).enumerate().collect();
    ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let top = call.body.get("top_n").and_then(Value::as_u64).map_or(usize::MAX, |n| n as usize);
    let results: Vec<Value> =
        ranked.iter().take(top).map(|(index, score)| json!({"index": index, "relevance_score": score})).collect();
    let meta = json!({"billed_units": {"search_units": 1}});
    let body = json!({"id": call.shared.fresh("rerank-"), "results": results, "meta": meta});
    Ok(call.json(body, &[("input_cost_per_query", 1)]))
}
