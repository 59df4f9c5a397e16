use alchemi::credits::Usd;
use alchemi::metering::charge::{Charge, ChargeInputs, Outcome, Unpriced, charge};
use alchemi::metering::count::CountRules;
use alchemi::metering::json::{Reported, read_usage};
use alchemi::metering::price::PriceBook;
use alchemi::metering::sse::SseMeter;
use alchemi::model::usage::{CostSource, RouteKind, Tokens};
use bytes::Bytes;
use proptest::prelude::*;

use crate::fixture;

fn book() -> PriceBook {
    PriceBook::from_model_info(&fixture::response("model_info").body).unwrap()
}

const COUNTED: Tokens =
    Tokens { input: 100, output: 10, cached: 0, cache_creation: 0, reasoning: 0, audio_input: 0, audio_output: 0 };
const BODY: Outcome = Outcome::Body(200);
const STREAM: Outcome = Outcome::Stream { status: 200, failed: false };

fn bill(
    outcome: Outcome,
    header: Option<&str>,
    reported: &Reported,
    counted: Tokens,
    model: &str,
    unpriced: Unpriced,
) -> (i64, CostSource) {
    let counted = counted.into();
    let inputs = ChargeInputs { model, outcome, header_cost: header, reported, counted, prices: &book(), unpriced };
    let Charge { cost, source, .. } = charge(&inputs);
    (cost.nanos(), source)
}

fn with(tokens: Option<(u64, u64)>, cost: Option<i64>) -> Reported {
    let tokens = tokens.map(|(input, output)| Tokens { input, output, ..Tokens::default() });
    Reported { tokens, cost: cost.map(Usd::from_nanos), ..Reported::default() }
}

#[test]
fn the_first_that_is_known_counts() {
    let bill =
        |outcome, header, reported: Reported| bill(outcome, header, &reported, COUNTED, "gpt-4o-mini", Unpriced::Allow);
    let all = with(Some((19, 21)), Some(7));
    assert_eq!(bill(BODY, Some("1.6e-05"), all), (16_000, CostSource::Header));
    assert_eq!(bill(BODY, Some("0.0"), all), (0, CostSource::Header));
    for malformed in ["", "None", "nan", "-1", "1e99", "0x1", "1,5"] {
        assert_eq!(bill(BODY, Some(malformed), all), (7, CostSource::Body), "{malformed}");
    }
    assert_eq!(bill(BODY, None, all), (7, CostSource::Body));
    assert_eq!(bill(BODY, None, with(Some((19, 21)), None)), (15_450, CostSource::Priced));
    assert_eq!(bill(BODY, None, with(Some((0, 0)), None)), (0, CostSource::Priced), "zero is zero");
    assert_eq!(bill(BODY, None, Reported::default()), (15_000 + 6000, CostSource::Estimated));
}

#[test]
fn a_stream_is_never_billed_from_its_head() {
    let bill = |reported: Reported| bill(STREAM, Some("0.0"), &reported, COUNTED, "gpt-4o-mini", Unpriced::Allow);
    assert_eq!(bill(with(Some((19, 21)), Some(9))), (9, CostSource::Body));
    assert_eq!(bill(with(Some((19, 21)), None)), (15_450, CostSource::Priced));
    assert_eq!(bill(Reported::default()), (21_000, CostSource::Estimated), "cut: never free, never the hold");
}

#[test]
fn failures_are_free_unless_something_was_used() {
    let none = Reported::default();
    let bill = |outcome, header, reported: &Reported, counted| {
        bill(outcome, header, reported, counted, "gpt-4o-mini", Unpriced::Flat(Usd::from_units(1)))
    };
    let no_output = Tokens { output: 0, ..COUNTED };
    for outcome in
        [Outcome::NotSent, Outcome::Body(429), Outcome::Body(500), Outcome::Stream { status: 500, failed: true }]
    {
        assert_eq!(bill(outcome, Some("0"), &none, COUNTED), (0, CostSource::Free), "{outcome:?}");
    }
    assert_eq!(bill(Outcome::Stream { status: 200, failed: true }, None, &none, no_output), (0, CostSource::Free));
    assert_eq!(bill(Outcome::Stream { status: 200, failed: true }, None, &none, COUNTED).1, CostSource::Estimated);
    assert_eq!(bill(STREAM, None, &none, no_output), (15_000, CostSource::Estimated));
    assert_eq!(bill(Outcome::NoAnswer, None, &none, no_output), (15_000, CostSource::Estimated));
    assert_eq!(bill(Outcome::Body(500), None, &with(Some((19, 21)), None), COUNTED), (15_450, CostSource::Priced));
    assert_eq!(bill(Outcome::Body(500), Some("1e-6"), &none, COUNTED), (1000, CostSource::Header));
}

#[test]
fn a_model_without_a_price() {
    let bill = |reported: &Reported, unpriced| bill(BODY, None, reported, COUNTED, "claude-mock", unpriced);
    let tokens = with(Some((1, 1)), None);
    assert_eq!(bill(&tokens, Unpriced::Allow), (0, CostSource::Unpriced));
    assert_eq!(bill(&tokens, Unpriced::Flat(Usd::from_nanos(5))), (5, CostSource::Unpriced));
    assert_eq!(bill(&Reported::default(), Unpriced::Flat(Usd::from_nanos(5))), (5, CostSource::Unpriced));
    assert_eq!(bill(&with(None, Some(3)), Unpriced::Flat(Usd::from_nanos(5))), (3, CostSource::Body));
    for (text, parsed) in [
        ("allow", Unpriced::Allow),
        ("deny", Unpriced::Deny),
        ("flat:0.01", Unpriced::Flat(Usd::from_nanos(10_000_000))),
    ] {
        assert_eq!(text.parse(), Ok(parsed));
        assert_eq!(parsed.to_string(), text);
        assert_eq!(serde_json::from_str::<Unpriced>(&format!("\"{text}\"")).unwrap(), parsed);
    }
    for bad in ["", "Allow", "flat", "flat:", "flat:-1", "flat:x"] {
        assert!(bad.parse::<Unpriced>().is_err(), "{bad}");
    }
}

/// Captured answers from first byte to charge, as the gateway would.
#[test]
fn captured_answers_are_charged_as_litellm_says() {
    for (name, kind, model, nanos, source) in [
        ("chat_upstream", RouteKind::Chat, "gpt-4o-mini", 15_450, CostSource::Header),
        ("embeddings", RouteKind::Embeddings, "text-embedding-3-small", 40, CostSource::Header),
        ("responses", RouteKind::Responses, "gpt-4o-mini", 4350, CostSource::Header),
        ("err_upstream_429", RouteKind::Chat, "gpt-4o-mini", 0, CostSource::Free),
        ("messages_claude_mock_stream", RouteKind::Messages, "claude-mock", 0, CostSource::Unpriced),
        ("chat_stream_usage", RouteKind::Chat, "gpt-4o-mini", 15_450, CostSource::Body),
        ("chat_stream_only", RouteKind::Chat, "gpt-4o-mini", 15_000 + 28 * 600, CostSource::Estimated),
        ("responses_mock_stream", RouteKind::Responses, "mock-gpt", 0, CostSource::Free),
        ("messages_stream", RouteKind::Messages, "gpt-4o-mini", 0, CostSource::Free),
    ] {
        let response = fixture::response(name);
        let header = response.header("x-litellm-response-cost");
        let is_stream = response.header("content-type").unwrap().starts_with("text/event-stream");
        let (outcome, reported, counted) = if is_stream {
            let mut meter = SseMeter::new(kind, true);
            meter.push(Bytes::copy_from_slice(&response.body));
            let report = meter.finish();
            let outcome = Outcome::Stream { status: response.status, failed: report.failed };
            (outcome, report.reported, report.counted(COUNTED.input, &CountRules::default()))
        } else {
            (Outcome::Body(response.status), read_usage(kind, &response.body), COUNTED)
        };
        assert_eq!(bill(outcome, header, &reported, counted, model, Unpriced::Allow), (nanos, source), "{name}");
    }
}

proptest! {
    #[test]
    fn no_charge_is_negative_and_a_cut_stream_is_never_free(
        input in 1_u64..1_000_000, output in 0_u64..1_000_000, header in prop::option::of("[-0-9.e]{0,8}"),
        tokens in prop::option::of((0_u64..1000, 0_u64..1000)), status in prop::sample::select(vec![200_u16, 400, 429, 500]), stream in any::<bool>(),
    ) {
        let outcome = if stream { Outcome::Stream { status, failed: false } } else { Outcome::Body(status) };
        let counted = Tokens { input, output, ..Tokens::default() };
        let reported = with(tokens, None);
        let (nanos, _) = bill(outcome, header.as_deref(), &reported, counted, "gpt-4o-mini", Unpriced::Allow);
        prop_assert!(nanos >= 0);
        if stream && status == 200 && tokens.is_none() {
            prop_assert!(nanos > 0);
        }
    }
}
