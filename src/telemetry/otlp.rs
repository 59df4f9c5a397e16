//! Traces and metrics to a collector, by OTLP over HTTP in protobuf.
//!
//! Spans of requests go through the batches of the OpenTelemetry SDK. Metrics are those
//! of `/metrics`, read out of the same text, so that neither has one that the other lacks.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry::{KeyValue, Value};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue as ProtoKeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prost::Message as _;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::registry::LookupSpan;

use super::Metrics;
use crate::clock::{SharedClock, Timestamp};
use crate::config::TelemetryConfig;

const NAME: &str = "alchemi";

/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who is speaking: `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` are the SDK's to read.
fn resource() -> Resource {
    let found = Resource::builder().build();
    let named = found.get(&"service.name".into()).is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let builder = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if named { builder.build() } else { builder.with_service_name(NAME).build() }
}

/// What sends spans, until it is stopped.
#[derive(Debug)]
pub(super) struct Tracer(SdkTracerProvider);

impl Tracer {
    /// A tracer that sends to the endpoint of `config`; `None` without one.
    pub(super) fn new(config: &TelemetryConfig) -> Result<Option<Self>, String> {
        let Some(endpoint) = &config.otlp_endpoint else { return Ok(None) };
        let headers: HashMap<String, String> = config.otlp_headers.0.iter().cloned().collect();
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_endpoint(signal(endpoint.as_str(), "traces"))
            .with_headers(headers)
            .with_timeout(PATIENCE)
            .build()
            .map_err(|error| format!("telemetry.otlp_endpoint (OTEL_EXPORTER_OTLP_ENDPOINT): {error}"))?;
        Ok(Some(Self(SdkTracerProvider::builder().with_resource(resource()).with_batch_exporter(exporter).build())))
    }

    /// The layer that makes spans of ours into spans of traces.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let ours = Targets::new().with_target(NAME, LevelFilter::DEBUG);
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer(NAME))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(ours)
    }

    /// Sends what waits.
    pub(super) fn stop(&self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last spans could not be sent");
        }
    }
}

/// Makes a request's span part of the trace that its headers name, and the headers name
/// the span, for whoever is called on its behalf. Without a tracer, nothing changes.
pub(crate) fn adopt(span: &Span, headers: &mut HeaderMap) {
    if span.is_disabled() {
        return;
    }
    let propagator = TraceContextPropagator::new();
    let parent = propagator.extract(&HeaderExtractor(headers));
    if parent.span().span_context().is_valid() {
        // Only a span that nobody traces refuses.
        let _ = span.set_parent(parent);
    }
    let own = span.context();
    if own.span().span_context().is_valid() {
        propagator.inject_context(&own, &mut HeaderInjector(headers));
    }
}

fn signal(endpoint: &str, name: &str) -> String {
    format!("{}/v1/{name}", endpoint.trim_end_matches('/'))
}

/// Sends the metrics to the endpoint of `config`, again and again.
pub(crate) async fn push_metrics(metrics: Arc<Metrics>, config: TelemetryConfig, clock: SharedClock) {
    let Some(endpoint) = config.otlp_endpoint.as_ref().map(|url| signal(url.as_str(), "metrics")) else { return };
    let client = match reqwest::Client::builder().timeout(PATIENCE).build() {
        Ok(client) => client,
        Err(error) => return tracing::warn!(%error, "metrics cannot be sent"),
    };
    let headers: HeaderMap = config.otlp_headers.0.iter().filter_map(as_header).collect();
    let (resource, began) = (proto_resource(), clock.now());
    loop {
        tokio::time::sleep(Duration::from_secs(config.metrics_seconds.max(1))).await;
        let body = request(&metrics.text(), resource.clone(), began, clock.now()).encode_to_vec();
        let sent = client
            .post(&endpoint)
            .headers(headers.clone())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .body(body)
            .send()
            .await
            .and_then(reqwest::Response::error_for_status);
        if let Err(error) = sent {
            // The address may hold a password.
            tracing::warn!(error = %error.without_url(), "the collector does not take the metrics");
        }
    }
}

fn as_header((name, value): &(String, String)) -> Option<(HeaderName, HeaderValue)> {
    Some((name.parse().ok()?, value.parse().ok()?))
}

fn proto_resource() -> ProtoResource {
    let attribute = |(key, value): (&opentelemetry::Key, &Value)| text_attribute(key.as_str(), value.as_str().as_ref());
    ProtoResource { attributes: resource().iter().map(attribute).collect(), ..ProtoResource::default() }
}

fn text_attribute(key: &str, value: &str) -> ProtoKeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    ProtoKeyValue { key: key.to_owned(), value: Some(value), ..ProtoKeyValue::default() }
}

/// The OTLP request of a text of OpenMetrics as [`Metrics::text`] writes it.
fn request(text: &str, resource: ProtoResource, began: Timestamp, now: Timestamp) -> ExportMetricsServiceRequest {
    let scope = InstrumentationScope {
        name: NAME.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let metrics = families(text).into_iter().map(|family| family.metric(nanos(began), nanos(now))).collect();
    let scoped = ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() };
    let of_resource =
        ResourceMetrics { resource: Some(resource), scope_metrics: vec![scoped], ..ResourceMetrics::default() };
    ExportMetricsServiceRequest { resource_metrics: vec![of_resource] }
}

fn nanos(at: Timestamp) -> u64 {
    u64::try_from(at.as_micros()).unwrap_or(0).saturating_mul(1_000)
}

/// The samples of one metric.
#[derive(Debug, Default)]
struct Family<'t> {
    name: &'t str,
    help: &'t str,
    kind: &'t str,
    samples: Vec<Sample<'t>>,
}

/// `name{label="value",…} number`
#[derive(Debug)]
struct Sample<'t> {
    /// What follows the family's name: `_total`, `_bucket`, ….
    suffix: &'t str,
    labels: Vec<(&'t str, &'t str)>,
    value: f64,
}

fn families(text: &str) -> Vec<Family<'_>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            families.push(Family { name, help, ..Family::default() });
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            match families.last_mut().filter(|family| family.name == name) {
                Some(family) => family.kind = kind,
                None => families.push(Family { name, kind, ..Family::default() }),
            }
        } else if let Some(family) = families.last_mut() {
            family.samples.extend(Sample::read(line, family.name));
        }
    }
    families
}

impl<'t> Sample<'t> {
    fn read(line: &'t str, family: &str) -> Option<Self> {
        let (named, value) = line.rsplit_once(' ')?;
        let (name, labels) = named.split_once('{').unwrap_or((named, ""));
        let pair = |pair: &'t str| {
            let (name, value) = pair.split_once('=')?;
            Some((name, value.trim_matches('"')))
        };
        Some(Self {
            suffix: name.strip_prefix(family)?,
            // No value of ours has a comma or a quotation mark in it.
            labels: labels.trim_end_matches('}').split(',').filter_map(pair).collect(),
            value: value.parse().ok()?,
        })
    }

    fn attributes(&self) -> Vec<ProtoKeyValue> {
        self.labels.iter().map(|(name, value)| text_attribute(name, value)).collect()
    }

    fn point(&self, began: u64, now: u64) -> NumberDataPoint {
        NumberDataPoint {
            attributes: self.attributes(),
            start_time_unix_nano: began,
            time_unix_nano: now,
            value: Some(number_data_point::Value::AsDouble(self.value)),
            ..NumberDataPoint::default()
        }
    }
}

impl Family<'_> {
    fn metric(&self, began: u64, now: u64) -> Metric {
        let cumulative = i32::from(AggregationTemporality::Cumulative);
        let points = || self.samples.iter().map(|sample| sample.point(began, now)).collect();
        let data = match self.kind {
            "counter" => metric::Data::Sum(Sum {
                data_points: points(),
                aggregation_temporality: cumulative,
                is_monotonic: true,
            }),
            "histogram" => metric::Data::Histogram(Histogram {
                data_points: self.histograms(began, now),
                aggregation_temporality: cumulative,
            }),
            _ => metric::Data::Gauge(Gauge { data_points: points() }),
        };
        Metric { name: self.name.to_owned(), description: self.help.to_owned(), data: Some(data), ..Metric::default() }
    }

    /// One histogram for each set of labels beside `le`.
    fn histograms(&self, began: u64, now: u64) -> Vec<HistogramDataPoint> {
        let mut by_labels: BTreeMap<Vec<(&str, &str)>, HistogramDataPoint> = BTreeMap::new();
        for sample in &self.samples {
            let key = sample.labels.iter().filter(|(name, _)| *name != "le").copied().collect::<Vec<_>>();
            let point = by_labels.entry(key.clone()).or_insert_with(|| HistogramDataPoint {
                attributes: key.iter().map(|(name, value)| text_attribute(name, value)).collect(),
                start_time_unix_nano: began,
                time_unix_nano: now,
                ..HistogramDataPoint::default()
            });
            match (sample.suffix, sample.labels.iter().find(|(name, _)| *name == "le")) {
                ("_sum", _) => point.sum = Some(sample.value),
                ("_count", _) => point.count = sample.value as u64,
                ("_bucket", Some((_, bound))) => {
                    // OpenMetrics adds the buckets up, OTLP does not.
                    let below: u64 = point.bucket_counts.iter().sum();
                    point.bucket_counts.push((sample.value as u64).saturating_sub(below));
                    point.explicit_bounds.extend(bound.parse::<f64>().ok().filter(|bound| bound.is_finite()));
                }
                _ => {}
            }
        }
        by_labels.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP alchemi_requests Requests by kind.\n# TYPE alchemi_requests counter\n\
        alchemi_requests_total{kind=\"chat\",code=\"allow\"} 3\nalchemi_requests_total{kind=\"chat\",code=\"model_denied\"} 1\n\
        # HELP alchemi_gateway_seconds Time.\n# TYPE alchemi_gateway_seconds histogram\nalchemi_gateway_seconds_sum 0.5\n\
        alchemi_gateway_seconds_count 4\nalchemi_gateway_seconds_bucket{le=\"0.1\"} 1\nalchemi_gateway_seconds_bucket{le=\"0.25\"} 3\n\
        alchemi_gateway_seconds_bucket{le=\"+Inf\"} 4\n# HELP alchemi_jwks_keys Keys.\n# TYPE alchemi_jwks_keys gauge\nalchemi_jwks_keys 2\n# EOF\n";

    #[test]
    fn every_family_becomes_a_metric_of_its_kind() {
        let (began, now) = (Timestamp::from_secs(1), Timestamp::from_secs(2));
        let request = request(TEXT, ProtoResource::default(), began, now);
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let names: Vec<_> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["alchemi_requests", "alchemi_gateway_seconds", "alchemi_jwks_keys"]);
        let Some(metric::Data::Sum(sum)) = &metrics[0].data else { panic!("{:?}", metrics[0]) };
        assert!(sum.is_monotonic && sum.data_points.len() == 2);
        assert_eq!(sum.data_points[0].value, Some(number_data_point::Value::AsDouble(3.0)));
        assert_eq!(
            sum.data_points[1].attributes,
            [text_attribute("kind", "chat"), text_attribute("code", "model_denied")]
        );
        assert_eq!(
            (sum.data_points[0].start_time_unix_nano, sum.data_points[0].time_unix_nano),
            (1_000_000_000, 2_000_000_000)
        );
        let Some(metric::Data::Histogram(histogram)) = &metrics[1].data else { panic!("{:?}", metrics[1]) };
        let point = &histogram.data_points[0];
        assert_eq!((point.count, point.sum), (4, Some(0.5)));
        assert_eq!(
            (point.bucket_counts.as_slice(), point.explicit_bounds.as_slice()),
            (&[1, 2, 1][..], &[0.1, 0.25][..])
        );
        let Some(metric::Data::Gauge(gauge)) = &metrics[2].data else { panic!("{:?}", metrics[2]) };
        assert_eq!(gauge.data_points[0].value, Some(number_data_point::Value::AsDouble(2.0)));
    }
}
