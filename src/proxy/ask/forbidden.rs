//! Which members of a body are refused, by their names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};

/// Names of members that would steer the upstream around the policy.
///
/// They are refused in the outer object and in fallbacks; with `metadata.` in front, in `metadata`
/// alone, and likewise with `prompt.`, `tools.` and `moderation.`, in those and in each of a list of
/// them. A `*` at the start or the end of a name stands for anything.
///
/// ```
/// use alchemi::proxy::ask::ForbiddenFields;
///
/// let fields = ForbiddenFields::from(vec!["api_base".into(), "aws_*".into(), "metadata.*_key".into()]);
/// assert!(fields.hold("aws_region_name") && fields.hold_inside("metadata", "my_key"));
/// assert!(!fields.hold("my_key") && !fields.hold_inside("tools", "my_key"));
/// ```
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
pub struct ForbiddenFields {
    patterns: Vec<String>,
    outer: Names,
    inside: BTreeMap<Box<str>, Names>,
}

/// Members of the outer object that are read into.
const READ_INTO: [&str; 4] = ["metadata", "prompt", "tools", "moderation"];

impl ForbiddenFields {
    /// The names, as they were given.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }

    /// Whether a member of the outer object is refused.
    pub fn hold(&self, name: &str) -> bool {
        self.outer.hold(name)
    }

    /// Whether a member of the outer member `outer` is refused.
    pub fn hold_inside(&self, outer: &str, name: &str) -> bool {
        self.inside.get(outer).is_some_and(|names| names.hold(name))
    }

    /// Whether some members of the outer member `outer` are refused.
    pub(super) fn reach_into(&self, outer: &str) -> bool {
        self.inside.contains_key(outer)
    }
}

impl From<Vec<String>> for ForbiddenFields {
    fn from(patterns: Vec<String>) -> Self {
        let (mut outer, mut inside) = (Names::default(), BTreeMap::<Box<str>, Names>::new());
        for pattern in &patterns {
            match pattern.split_once('.').filter(|(member, _)| READ_INTO.contains(member)) {
                Some((member, name)) => inside.entry(member.into()).or_default().add(name),
                None => outer.add(pattern),
            }
        }
        Self { patterns, outer, inside }
    }
}

impl From<ForbiddenFields> for Vec<String> {
    fn from(fields: ForbiddenFields) -> Self {
        fields.patterns
    }
}

/// What they say; the rest follows from it.
impl fmt::Debug for ForbiddenFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.patterns, f)
    }
}

impl PartialEq for ForbiddenFields {
    fn eq(&self, other: &Self) -> bool {
        self.patterns == other.patterns
    }
}

impl Eq for ForbiddenFields {}

/// Patterns, so that a name is compared with few of them: there are a hundred, and a body has ten members.
#[derive(Clone, Default)]
struct Names {
    whole: HashSet<Box<str>, RandomState>,
    /// By their first byte.
    starts: HashMap<u8, Vec<Box<str>>, RandomState>,
    ends: Vec<Box<str>>,
    parts: Vec<Box<str>>,
}

impl Names {
    fn add(&mut self, pattern: &str) {
        match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
            (None, None) => _ = self.whole.insert(pattern.into()),
            (None, Some(start)) => {
                let first = start.as_bytes().first().copied().unwrap_or_default();
                self.starts.entry(first).or_default().push(start.into());
            }
            (Some(end), None) => self.ends.push(end.into()),
            (Some(_), Some(_)) => self.parts.push(pattern.trim_matches('*').into()),
        }
    }

    fn hold(&self, name: &str) -> bool {
        let starts = name.as_bytes().first().and_then(|first| self.starts.get(first));
        self.whole.contains(name)
            || starts.is_some_and(|starts| starts.iter().any(|start| name.starts_with(&**start)))
            || self.ends.iter().any(|end| name.ends_with(&**end))
            || self.parts.iter().any(|part| name.contains(&**part))
    }
}

impl Default for ForbiddenFields {
    fn default() -> Self {
        let names = [
            // Where the upstream sends the request, with what, and with whose credential.
            "api_base",
            "base_url",
            "api_key",
            "api_version",
            "custom_llm_provider",
            "organization",
            "headers",
            "extra_headers",
            "provider_specific_header",
            "proxy_server_request",
            "ssl_verify",
            "use_ssl",
            "deployment_url",
            "region_name",
            "client_id",
            "client_secret",
            "tenant_id",
            "*workspace_id",
            "anthropic-workspace-id",
            "*_api_key",
            "agentcore_*",
            "aws_*",
            "azure_*",
            "bedrock_*",
            "fireworks_*",
            "nvcf_*",
            "oci_*",
            "s3_*",
            "sagemaker_*",
            "vertex_*",
            "watsonx_*",
            "wx_credentials",
            "apikey",
            "url",
            "token",
            "region",
            "project_id",
            "space_id",
            "inference_geo",
            "metadata.api_base",
            "metadata.base_url",
            "metadata.*_api_key",
            // The upstream's own settings.
            "litellm_*",
            "user_config",
            "router_settings_override",
            "policies",
            "guardrails",
            "metadata.guardrails",
            "disable_global_*",
            "metadata.disable_global_guardrail",
            "metadata.disable_global_guardrails",
            "user_api_key_*",
            "metadata.user_api_key_*",
            "rust",
            // Where it logs what is asked and answered, and whether.
            "callbacks",
            "*_callback",
            "arize_*",
            "braintrust_*",
            "dd_*",
            "gcs_*",
            "humanloop_*",
            "langfuse_*",
            "langsmith_*",
            "lunary_*",
            "newrelic_*",
            "phoenix_*",
            "posthog_*",
            "signoz_*",
            "slack_*",
            "wandb_*",
            "weave_*",
            "no-log",
            "no_log",
            "turn_off_message_logging",
            "metadata.arize_space_*",
            "metadata.braintrust_*",
            "metadata.dd_agent_*",
            "metadata.dd_site",
            "metadata.gcs_*",
            "metadata.langfuse_host",
            "metadata.langfuse_public_key",
            "metadata.langfuse_secret*",
            "metadata.langsmith_base_url",
            "metadata.langsmith_project",
            "metadata.langsmith_tenant_id",
            "metadata.lunary_public_key",
            "metadata.newrelic_region",
            "metadata.phoenix_project_name",
            "metadata.posthog_*",
            "metadata.signoz_*",
            "metadata.slack_webhook_url",
            "metadata.turn_off_message_logging",
            "metadata.weave_project_id",
            // Which model it runs. `extra_body` is merged over the body on its way to the provider.
            "model_list",
            "models",
            "model_id",
            "model_info",
            "base_model",
            "context_window_fallback_dict",
            "default_fallbacks",
            "specific_deployment",
            "num_retries",
            "deployment_id",
            "azure",
            "extra_body",
            "additional_drop_params",
            "drop_params",
            "mock_*",
            "prompt_id",
            // How much it answers, as single providers call it: LiteLLM hands these on.
            "maxTokens",
            "maxOutputTokens",
            "maxTokenCount",
            "maximum_tokens",
            "max_new_tokens",
            "max_gen_len",
            "max_length",
            "max_tokens_to_sample",
            "num_predict",
            "n_predict",
            "auto_max_new_tokens",
            "candidate_count",
            "candidateCount",
            "num_generations",
            "numResults",
            "numGenerations",
            "n_cmpl",
            "num_return_sequences",
            "generation_config",
            "generationConfig",
            "inferenceConfig",
            "textGenerationConfig",
            "additional_model_request_fields",
            "additionalModelRequestFields",
            "max_retries",
            // What it costs, and whom it charges.
            "*_cost*",
            "tiered_pricing",
            "tags",
            "metadata.tags",
            // Its use is reported only after the answer.
            "background",
            // Stored state of the upstream that alchemi cannot tell the owner of.
            "conversation",
            "prompt.id",
            "vector_store_ids",
            "container",
            "file_ids",
            "file_id",
            "item_reference",
            "tools.vector_store_ids",
            "tools.file_ids",
            // Servers that the upstream calls, or its own ones, beside the connections that are granted.
            "mcp_servers",
            "tools.server_url",
            "tools.connector_id",
            // Models beside the one that is asked for.
            "tools.model",
            "moderation.model",
            "plugins",
        ];
        Self::from(names.map(str::to_owned).to_vec())
    }
}
