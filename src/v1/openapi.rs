//! The description: what the route table and the handlers do not say themselves.

use utoipa::openapi::OpenApi;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};

use crate::context::Domain;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "alchemi control plane", license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT")),
    security(("bearer" = [])),
    components(schemas(crate::problem::ProblemBody, crate::problem::FieldError)),
    tags(
        (name = "context", description = "Who is calling"),
        (name = "revocations", description = "Tokens cut off before they expire"),
        (name = "accounts", description = "Tenants, their admins and the operator's settings for them"),
        (name = "directory", description = "Orgs, teams, users and memberships of both product domains"),
        (name = "budgets", description = "Credits: account allocation, plans, allocations, overrides, usage, cycles"),
        (name = "models", description = "Who may use which model"),
        (name = "audit", description = "Who changed what, chained by hash"),
        (name = "costs", description = "What was spent, from sums kept at settlement"),
        (name = "self-service", description = "What holds for the caller"),
    )
)]
pub(super) struct Base;

/// Expands `{domain}` paths for each domain and adds the security scheme.
pub(super) fn complete(mut description: OpenApi) -> OpenApi {
    description.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let paths = std::mem::take(&mut description.paths.paths);
    for (path, item) in paths {
        if path.contains("/{domain}/") {
            for domain in Domain::ALL {
                let path = path.replace("/{domain}/", &format!("/{domain}/"));
                description.paths.paths.insert(path, for_domain(item.clone(), domain));
            }
        } else {
            description.paths.paths.insert(path, item);
        }
    }
    let bearer = SecurityScheme::Http(
        Http::builder()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .description(Some("A Zitadel access token, or the operator's master key"))
            .build(),
    );
    description.components.get_or_insert_default().security_schemes.insert("bearer".to_owned(), bearer.into());
    description
}

fn for_domain(mut item: PathItem, domain: Domain) -> PathItem {
    for operation in operations(&mut item) {
        if let Some(id) = &mut operation.operation_id {
            // list_orgs -> list_copilot_orgs
            let (verb, rest) = id.split_once('_').unwrap_or((id, ""));
            *id = format!("{verb}_{domain}_{rest}");
        }
    }
    item
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten()
}
