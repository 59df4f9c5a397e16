use std::collections::BTreeMap;
use std::time::Duration;

use alchemi::credits::Usd;
use alchemi::metering::json::Reported;
use alchemi::metering::price::{ModelPrice, PriceBook, TooDear};
use alchemi::model::usage::Tokens;
use alchemi::policy::AskSize;
use proptest::prelude::*;
use serde_json::json;

use crate::fixture;

fn book(deployments: serde_json::Value) -> PriceBook {
    PriceBook::from_model_info(json!({ "data": deployments }).to_string().as_bytes()).unwrap()
}

fn nanos(book: &PriceBook, tokens: Tokens) -> Option<i64> {
    book.price("m", &tokens.into()).map(Usd::nanos)
}

#[test]
fn the_captured_model_list() {
    let book = PriceBook::from_model_info(&fixture::response("model_info").body).unwrap();
    let tokens = Tokens { input: 19, output: 21, ..Tokens::default() };
    assert_eq!(
        book.price("gpt-4o-mini", &tokens.into()),
        Some(Usd::from_nanos(15_450)),
        "as LiteLLM's own header says"
    );
    let embedding = Tokens { input: 2, ..Tokens::default() };
    assert_eq!(book.price("text-embedding-3-small", &embedding.into()), Some(Usd::from_nanos(40)));
    let cached = Tokens { input: 1000, cached: 1000, ..Tokens::default() };
    assert_eq!(book.price("gpt-4o", &cached.into()), Some(Usd::from_nanos(1_250_000)));
    assert_eq!(book.max_output("gpt-4o"), Some(16_384));
    assert_eq!(book.price("claude-mock", &tokens.into()), None, "listed without a price");
    assert_eq!(book.max_output("claude-mock"), Some(64_000));
    assert_eq!(book.price("unheard-of", &tokens.into()), None);
}

#[test]
fn special_prices_and_what_stands_in_for_them() {
    let used = Tokens {
        input: 100,
        output: 50,
        cached: 60,
        cache_creation: 10,
        reasoning: 20,
        audio_input: 5,
        audio_output: 4,
    };
    let plain =
        book(json!([{"model_name":"m","model_info":{"input_cost_per_token":1e-6,"output_cost_per_token":2e-6}}]));
    assert_eq!(nanos(&plain, used), Some(100_000 + 100_000));
    let special = book(json!([{"model_name":"m","model_info":{
        "input_cost_per_token":1e-6,"output_cost_per_token":2e-6,"cache_read_input_token_cost":1e-7,
        "cache_creation_input_token_cost":1.25e-6,"output_cost_per_reasoning_token":3e-6,
        "input_cost_per_audio_token":1e-5,"output_cost_per_audio_token":2e-5}}]));
    let input = 25 * 1000 + 60 * 100 + 10 * 1250 + 5 * 10_000;
    assert_eq!(nanos(&special, used), Some(input + 26 * 2000 + 20 * 3000 + 4 * 20_000));
    // Parts larger than the whole are held to it.
    let absurd = Tokens { input: 10, cached: u64::MAX, cache_creation: u64::MAX, ..Tokens::default() };
    assert_eq!(nanos(&special, absurd), Some(1000));
}

#[test]
fn the_dearest_deployment_counts() {
    let book = book(json!([
        {"model_name":"m","model_info":{"input_cost_per_token":1e-6,"output_cost_per_token":5e-6,"cache_read_input_token_cost":1e-7,"max_output_tokens":10}},
        {"model_name":"m","model_info":{"input_cost_per_token":2e-6,"output_cost_per_token":4e-6,"max_tokens":20}},
        {"model_name":"m","model_info":null},
        {"model_name":"m"},
    ]));
    let tokens = Tokens { input: 10, output: 10, cached: 5, ..Tokens::default() };
    assert_eq!(nanos(&book, tokens), Some(20_000 + 50_000), "the second one has no price for cached input");
    assert_eq!(book.max_output("m"), Some(20));
}

#[test]
fn sums_are_rounded_once_half_to_even() {
    let cheap =
        book(json!([{"model_name":"m","model_info":{"input_cost_per_token":5e-10,"output_cost_per_token":5e-10}}]));
    assert_eq!(nanos(&cheap, Tokens { input: 1, output: 1, ..Tokens::default() }), Some(1));
    assert_eq!(nanos(&cheap, Tokens { input: 1, ..Tokens::default() }), Some(0));
    assert_eq!(nanos(&cheap, Tokens { input: 3, ..Tokens::default() }), Some(2));
    let huge = Tokens { input: u64::MAX, output: u64::MAX, ..Tokens::default() };
    let dear = book(json!([{"model_name":"m","model_info":{"input_cost_per_token":9e9,"output_cost_per_token":9e9}}]));
    assert_eq!(nanos(&dear, huge), None, "no overflow, no wrap");
}

#[test]
fn prices_are_read_as_they_are_written() {
    let body = br#"{"data":[{"model_name":"m","model_info":{"input_cost_per_token":1.4999999999999998e-07,"output_cost_per_token":"6e-7"}},
                            {"model_name":"bad","model_info":{"input_cost_per_token":-1,"output_cost_per_token":{}}}]}"#;
    let book = PriceBook::from_model_info(body).unwrap();
    assert_eq!(nanos(&book, Tokens { input: 1_000_000_000, ..Tokens::default() }), Some(150_000_000_000));
    assert_eq!(nanos(&book, Tokens { output: 1, ..Tokens::default() }), Some(600));
    assert_eq!(book.price("bad", &Tokens { input: 1, ..Tokens::default() }.into()), None);
    for bad in ["", "[]", "{}", r#"{"data":[{}]}"#, r#"{"error":"x"}"#] {
        assert!(PriceBook::from_model_info(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn a_missing_price_is_never_taken_for_nothing() {
    let input_only = book(json!([{"model_name":"m","model_info":{"input_cost_per_token":1e-6}}]));
    assert_eq!(nanos(&input_only, Tokens { input: 2, ..Tokens::default() }), Some(2000));
    assert_eq!(nanos(&input_only, Tokens { input: 2, output: 1, ..Tokens::default() }), None);
}

#[test]
fn seconds_images_and_searches() {
    let book = book(
        json!([{"model_name":"m","model_info":{"input_cost_per_second":0.0001,"output_cost_per_image":0.04,"input_cost_per_query":0.002}}]),
    );
    let price = |used: Reported| book.price("m", &used).map(Usd::nanos);
    assert_eq!(price(Reported { duration: Some(Duration::from_millis(3100)), ..Reported::default() }), Some(310_000));
    assert_eq!(
        price(Reported { images: Some(3), tokens: Some(Tokens::default()), ..Reported::default() }),
        Some(120_000_000)
    );
    assert_eq!(price(Reported { queries: Some(1), ..Reported::default() }), Some(2_000_000));
    assert_eq!(price(Reported::default()), None);
}

#[test]
fn what_is_not_billed_by_tokens_is_estimated_by_what_is_asked_for() {
    let book = book(json!([
        {"model_name": "pictures", "model_info": {"input_cost_per_image": 0.04, "output_cost_per_image": 0.02}},
        {"model_name": "voice", "model_info": {"input_cost_per_character": 1.5e-5}},
        {"model_name": "ears", "model_info": {"input_cost_per_second": 0.0001, "output_cost_per_second": 0.0002}},
    ]));
    let size = AskSize { input_tokens: 3, characters: 10, seconds: 30, answers: 2, ..AskSize::default() };
    let estimate = |model| book.estimate(model, &size, 1024).unwrap().cost.map(Usd::nanos);
    assert_eq!(estimate("pictures"), Some(80_000_000), "the dearer of the two prices");
    assert_eq!(estimate("voice"), Some(150_000));
    assert_eq!(estimate("ears"), Some(6_000_000));
}

#[test]
fn a_name_with_a_star_prices_what_begins_like_it() {
    let price = |cost: f64| json!({"input_cost_per_token": cost, "output_cost_per_token": 0});
    let book = book(json!([
        {"model_name": "*", "model_info": price(1e-6)},
        {"model_name": "openai/*", "model_info": price(2e-6)},
        {"model_name": "openai/gpt-4*", "model_info": price(3e-6)},
        {"model_name": "openai/gpt-4o", "model_info": price(4e-6)},
        // Listed without a price of its own.
        {"model_name": "openai/gpt-4-listed", "model_info": {"max_output_tokens": 7}},
    ]));
    let used = Tokens { input: 1, ..Tokens::default() }.into();
    let price = |model| book.price(model, &used).map(Usd::nanos);
    for (model, nanos) in
        [("openai/gpt-4o", 4000), ("openai/gpt-4o-mini", 3000), ("openai/o3", 2000), ("claude", 1000), ("openai", 1000)]
    {
        assert_eq!(price(model), Some(nanos), "{model}");
    }
    assert_eq!((price("openai/gpt-4-listed"), book.max_output("openai/gpt-4-listed")), (Some(3000), Some(7)));
    let more = serde_json::from_value(json!({"claude*": {"input_cost_per_token": "9e-6", "output_cost_per_token": 0}}));
    let book = book.with_overrides(&more.unwrap());
    assert_eq!(book.price("claude", &used).map(Usd::nanos), Some(9000));
}

#[test]
fn configuration_wins_field_by_field() {
    let base =
        book(json!([{"model_name":"m","model_info":{"input_cost_per_token":1e-6,"output_cost_per_token":2e-6}}]));
    let prices: BTreeMap<String, ModelPrice> = serde_json::from_value(
        json!({"m":{"output_cost_per_token":"3e-6"},"new":{"input_cost_per_token":1.5e-7,"output_cost_per_token":0}}),
    )
    .unwrap();
    let book = base.with_overrides(&prices);
    let tokens = Tokens { input: 1, output: 1, ..Tokens::default() };
    assert_eq!(nanos(&book, tokens), Some(4000));
    assert_eq!(book.price("new", &tokens.into()), Some(Usd::from_nanos(150)));
    for bad in [json!({"input_cost":1}), json!({"input_cost_per_token":-1}), json!({"input_cost_per_token":"x"})] {
        assert!(serde_json::from_value::<ModelPrice>(bad).is_err());
    }
}

#[test]
fn estimates_are_bounded_by_request_and_model() {
    let book = book(
        json!([{"model_name":"m","model_info":{"input_cost_per_token":1e-6,"output_cost_per_token":2e-6,"max_output_tokens":100}},
                           {"model_name":"picture","model_info":{"output_cost_per_image":0.04}}]),
    );
    let estimate = |model: &str, max_output, answers| {
        let size = AskSize { input_tokens: 10, max_output, answers, ..AskSize::default() };
        let estimate = book.estimate(model, &size, 1024).unwrap();
        (estimate.tokens.input, estimate.tokens.output, estimate.cost.map(Usd::nanos))
    };
    assert_eq!(estimate("m", Some(20), 1), (10, 20, Some(50_000)));
    assert_eq!(estimate("m", Some(20), 3), (10, 60, Some(130_000)));
    assert_eq!(estimate("m", None, 1), (10, 100, Some(210_000)));
    assert_eq!(estimate("m", Some(u64::MAX), 2), (10, 200, Some(410_000)));
    assert_eq!(estimate("other", None, 0), (10, 1024, None));
    assert_eq!(estimate("other", Some(u64::MAX), u64::MAX), (10, u64::MAX, None));
    assert_eq!(estimate("picture", None, 2).2, Some(80_000_000));
}

#[test]
fn a_dearer_tier_a_long_context_and_a_cache_for_an_hour_count_in_what_a_request_may_cost() {
    let book = book(json!([{"model_name":"m","model_info":{
        "input_cost_per_token":1e-6, "output_cost_per_token":2e-6,
        "input_cost_per_token_priority":3e-6, "output_cost_per_token_priority":4e-6,
        "input_cost_per_token_above_200k_tokens":5e-6, "output_cost_per_token_above_200k_tokens":6e-6}},
        {"model_name":"kept","model_info":{"input_cost_per_token":1e-6, "output_cost_per_token":0,
        "cache_creation_input_token_cost":1.25e-6, "cache_creation_input_token_cost_above_1hr":2e-6}}]));
    let cost = |model: &str, most_input, priority| {
        let (input_tokens, max_output) = (most_input / 4, Some(10));
        let size = AskSize { input_tokens, most_input, max_output, priority, ..AskSize::default() };
        let estimate = book.estimate(model, &size, 1024).unwrap().cost.map(Usd::nanos).unwrap();
        (estimate, book.ceiling(model, &size, 10).unwrap().map(Usd::nanos).unwrap())
    };
    assert_eq!(cost("m", 100, false), (25_000 + 20_000, 100_000 + 20_000));
    assert_eq!(cost("m", 100, true), (75_000 + 40_000, 300_000 + 40_000));
    assert_eq!(cost("m", 200_004, true), (150_003_000 + 40_000, 1_000_020_000 + 60_000));
    assert_eq!(cost("kept", 100, false), (25_000, 200_000));
    let dearest = book.price("m", &Tokens { input: 25, output: 10, ..Tokens::default() }.into());
    assert_eq!(dearest.map(Usd::nanos), Some(45_000), "an answer is priced plainly");
}

/// What does not fit is not what has no price: it would be let in as free.
#[test]
fn an_estimate_that_does_not_fit_is_none() {
    let book = book(json!([
        {"model_name":"m","model_info":{"input_cost_per_token":1e-6,"output_cost_per_token":2e-6}},
        {"model_name":"dear","model_info":{"input_cost_per_token":9e9}},
        {"model_name":"picture","model_info":{"output_cost_per_image":9e9}},
    ]));
    let estimate = |model: &str, input_tokens, max_output, answers| {
        let size = AskSize { input_tokens, max_output: Some(max_output), answers, ..AskSize::default() };
        book.estimate(model, &size, 1024)
    };
    for (input, output) in [(0, u64::MAX), (u64::MAX, 0), (u64::MAX, u64::MAX), (0, 5_000_000_000_000_000)] {
        assert_eq!(estimate("m", input, output, 1), Err(TooDear), "{input} {output}");
    }
    assert_eq!(estimate("m", 0, 4_000_000_000_000_000, 1).unwrap().cost, Some(Usd::from_units(8_000_000_000)));
    assert_eq!(estimate("dear", 2, 0, 1), Err(TooDear));
    assert_eq!(estimate("picture", 0, 0, 2), Err(TooDear));
    assert!(estimate("m", 1, u64::MAX, 128).is_err() && estimate("other", u64::MAX, u64::MAX, 128).is_ok());
}

proptest! {
    /// However a request's tokens turn out, below its bounds they cost no more than its ceiling.
    #[test]
    fn nothing_costs_more_than_its_ceiling(
        prices in prop::collection::vec(prop::option::of(0_u32..5_000), 7),
        (bytes, output, answers) in (0_u64..100_000, 0_u64..5_000, 1_u64..5),
        parts in prop::array::uniform6(0.0..1.0_f64),
    ) {
        let names = ["input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost",
            "cache_creation_input_token_cost", "output_cost_per_reasoning_token", "input_cost_per_audio_token",
            "output_cost_per_audio_token"];
        let info = names.iter().zip(&prices).filter_map(|(name, price)| Some((*name, json!(format!("{}e-9", (*price)?)))));
        let book = book(json!([{"model_name": "m", "model_info": serde_json::Map::from_iter(info.map(|(n, p)| (n.to_owned(), p)))}]));
        let part = |whole: u64, n: usize| (whole as f64 * parts[n]) as u64;
        let (input, made) = (part(bytes, 0), part(output * answers, 1));
        let used = Tokens {
            input,
            output: made,
            cached: part(input, 2),
            cache_creation: part(input, 3),
            audio_input: part(input, 4),
            reasoning: part(made, 5),
            audio_output: part(made, 2),
        };
        let max_output = Some(output);
        let size = AskSize { input_tokens: bytes / 4, most_input: bytes, media: 1, max_output, answers, ..AskSize::default() };
        let ceiling = book.ceiling("m", &size, output).unwrap();
        let cost = book.price("m", &used.into());
        prop_assert!(cost <= ceiling || ceiling.is_none(), "{:?} is above {:?}", cost, ceiling);
    }

    #[test]
    fn a_price_is_exact_to_the_nano(input in 0_u64..10_000_000, output in 0_u64..10_000_000, a in 0_i64..100_000_000, b in 0_i64..100_000_000) {
        // Prices in units of 1e-12, so the sum is an integer of those.
        let body = format!(r#"{{"data":[{{"model_name":"m","model_info":{{"input_cost_per_token":{a}e-12,"output_cost_per_token":{b}e-12}}}}]}}"#);
        let book = PriceBook::from_model_info(body.as_bytes()).unwrap();
        let pico = i128::from(input) * i128::from(a) + i128::from(output) * i128::from(b);
        let (whole, rest) = (pico / 1000, pico % 1000);
        let rounded = whole + i128::from(rest > 500 || (rest == 500 && whole % 2 == 1));
        prop_assert_eq!(nanos(&book, Tokens { input, output, ..Tokens::default() }).map(i128::from), Some(rounded));
    }
}
