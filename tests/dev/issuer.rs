use std::sync::Arc;
use std::time::Duration;

use alchemi::clock::{ManualClock, SystemClock, Timestamp};
use alchemi::dev::{DevError, DevIssuer, DevUser, Org};
use alchemi::id::RandomIds;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use reqwest::{Client, StatusCode};
use serde_json::{Map, Value, json};

const START: i64 = 4_000_000_000;

fn org(id: &str, name: &str) -> Org {
    Org { id: id.to_owned(), name: name.to_owned(), domain: format!("{}.localhost", name.to_lowercase()) }
}

fn ada() -> DevUser {
    let claims = json!({
        "alchemi:account_id": "acme", "product_domains_allowed": ["copilot"],
        "sub": "somebody else", "urn:zitadel:iam:org:id": "forged",
    });
    DevUser {
        subject: "286399320075272196".to_owned(),
        email: Some("ada@acme.localhost".to_owned()),
        name: "Ada".to_owned(),
        organization: org("7001", "Acme"),
        roles: vec![
            ("member".to_owned(), org("7001", "Acme")),
            ("member".to_owned(), org("7002", "Beta")),
            ("admin".to_owned(), org("7002", "Beta")),
        ],
        claims: claims.as_object().unwrap().clone(),
    }
}

async fn issuer() -> (DevIssuer, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at(Timestamp::from_secs(START)));
    let issuer =
        DevIssuer::start("127.0.0.1:0".parse().unwrap(), clock.clone(), Arc::new(RandomIds)).await.expect("starts");
    issuer.add_user(ada());
    issuer.add_service_user(
        DevUser { claims: Map::new(), email: None, subject: "9001".to_owned(), ..ada() },
        "bot",
        "s3+cr:et",
    );
    (issuer, clock)
}

async fn discovery(issuer: &DevIssuer) -> Value {
    let url = format!("{}/.well-known/openid-configuration", issuer.url());
    Client::new().get(url).send().await.unwrap().json().await.unwrap()
}

async fn keys(issuer: &DevIssuer) -> JwkSet {
    let url = discovery(issuer).await["jwks_uri"].as_str().unwrap().to_owned();
    Client::new().get(url).send().await.unwrap().json().await.unwrap()
}

fn verify(token: &str, keys: &JwkSet, audience: &str) -> Result<Value, String> {
    let header = jsonwebtoken::decode_header(token).unwrap();
    assert_eq!(header.typ.as_deref(), Some("JWT"));
    let kid = header.kid.unwrap();
    assert!(kid.bytes().all(|b| b.is_ascii_digit()), "{kid}");
    let key = keys.find(&kid).ok_or("no such key")?;
    let mut validation = Validation::new(header.alg);
    validation.set_audience(&[audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let key = DecodingKey::from_jwk(key).unwrap();
    jsonwebtoken::decode::<Value>(token, &key, &validation).map(|data| data.claims).map_err(|error| error.to_string())
}

async fn token(issuer: &DevIssuer, scope: &str) -> (StatusCode, Value) {
    let form = [("grant_type", "client_credentials"), ("scope", scope)];
    // Each half of Basic is form-encoded: RFC 6749 section 2.3.1.
    let request =
        Client::new().post(format!("{}/oauth/v2/token", issuer.url())).basic_auth("bot", Some("s3%2Bcr%3Aet"));
    let answer = request.form(&form).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

async fn introspect(issuer: &DevIssuer, (id, secret): (&str, &str), token: &str) -> (StatusCode, Value) {
    let request = Client::new().post(format!("{}/oauth/v2/introspect", issuer.url())).basic_auth(id, Some(secret));
    let answer = request.form(&[("token", token)]).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

#[tokio::test]
async fn discovery_leads_to_keys_that_may_be_cached() {
    let (issuer, _) = issuer().await;
    let document = discovery(&issuer).await;
    assert_eq!(document["issuer"], issuer.url());
    assert_eq!(document["introspection_endpoint"], format!("{}/oauth/v2/introspect", issuer.url()));
    let answer = Client::new().get(document["jwks_uri"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(answer.headers()["cache-control"], "max-age=300, must-revalidate");
    let keys: Value = answer.json().await.unwrap();
    let shapes: Vec<_> =
        keys["keys"].as_array().unwrap().iter().map(|key| (&key["kty"], &key["alg"], &key["use"])).collect();
    assert_eq!(
        shapes,
        [(&json!("RSA"), &json!("RS256"), &json!("sig")), (&json!("EC"), &json!("ES256"), &json!("sig"))]
    );
}

#[tokio::test]
async fn a_minted_token_is_zitadels() {
    let (issuer, _) = issuer().await;
    let token = issuer.mint("286399320075272196", Duration::from_secs(900)).unwrap();
    let project = issuer.project_id();
    let mut claims = verify(&token, &keys(&issuer).await, project).unwrap();
    let claims = claims.as_object_mut().unwrap();
    let session = claims.remove("jti").unwrap();
    assert!(session.as_str().unwrap().starts_with("V2_") && session.as_str().unwrap().contains("-at_"));
    let app = claims.remove("client_id").unwrap();
    let roles =
        json!({"member": {"7001": "acme.localhost", "7002": "beta.localhost"}, "admin": {"7002": "beta.localhost"}});
    let expected = json!({
        "iss": issuer.url(), "sub": "286399320075272196", "aud": [app, project],
        "iat": START, "nbf": START, "exp": START + 900,
        "urn:zitadel:iam:org:project:roles": roles,
        format!("urn:zitadel:iam:org:project:{project}:roles"): roles,
        "urn:zitadel:iam:user:resourceowner:id": "7001",
        "urn:zitadel:iam:user:resourceowner:name": "Acme",
        "urn:zitadel:iam:user:resourceowner:primary_domain": "acme.localhost",
        "email": "ada@acme.localhost", "email_verified": true,
        "alchemi:account_id": "acme", "product_domains_allowed": ["copilot"],
    });
    assert_eq!(Value::Object(claims.clone()), expected);
}

#[tokio::test]
async fn bent_claims_and_both_algorithms_can_be_signed() {
    let (issuer, _) = issuer().await;
    let mut claims = issuer.claims("286399320075272196", Duration::from_secs(900)).unwrap();
    claims.insert("aud".to_owned(), json!(["somebody else"]));
    let keys = keys(&issuer).await;
    for algorithm in [Algorithm::RS256, Algorithm::ES256] {
        let token = issuer.sign(algorithm, &claims).unwrap();
        assert!(verify(&token, &keys, "somebody else").is_ok());
        assert!(verify(&token, &keys, issuer.project_id()).is_err());
    }
    assert!(matches!(issuer.sign(Algorithm::HS256, &claims), Err(DevError::Signing(_))));
    assert!(matches!(issuer.mint("nobody", Duration::ZERO), Err(DevError::UnknownSubject(_))));
}

#[tokio::test]
async fn rotation_keeps_the_old_keys_until_they_are_withdrawn() {
    let (issuer, _) = issuer().await;
    let subject = "286399320075272196";
    let old = issuer.mint(subject, Duration::from_secs(900)).unwrap();
    issuer.rotate().unwrap();
    let new = issuer.mint(subject, Duration::from_secs(900)).unwrap();
    let both = keys(&issuer).await;
    assert!(verify(&old, &both, issuer.project_id()).is_ok() && verify(&new, &both, issuer.project_id()).is_ok());
    issuer.withdraw_inactive_keys();
    let one = keys(&issuer).await;
    assert_eq!(verify(&old, &one, issuer.project_id()), Err("no such key".to_owned()));
    assert!(verify(&new, &one, issuer.project_id()).is_ok());
}

#[tokio::test]
async fn a_service_user_gets_what_its_scopes_ask_for() {
    let (issuer, _) = issuer().await;
    let project = issuer.project_id().to_owned();
    let keys = keys(&issuer).await;
    let ours = format!("urn:zitadel:iam:org:project:{project}:roles");
    let aud = format!("urn:zitadel:iam:org:project:id:{project}:aud");
    let claims = async |scope: &str, audience: &str| {
        let (status, answer) = token(&issuer, scope).await;
        assert_eq!(
            (status, &answer["token_type"], &answer["expires_in"]),
            (StatusCode::OK, &json!("Bearer"), &json!(43_199))
        );
        verify(answer["access_token"].as_str().unwrap(), &keys, audience).unwrap()
    };

    let bare = claims("openid", "bot").await;
    assert_eq!((&bare["aud"], &bare["client_id"], &bare["sub"]), (&json!(["bot"]), &json!("bot"), &json!("9001")));
    assert!(bare.get(&ours).is_none() && bare.get("scope").is_none());
    assert_eq!(bare["exp"].as_i64().unwrap() - bare["iat"].as_i64().unwrap(), 43_200);

    assert!(claims(&aud, &project).await.get(&ours).is_none(), "roles need a role scope too");
    assert!(claims("urn:zitadel:iam:org:projects:roles", "bot").await.get(&ours).is_none(), "and the audience");

    let full = claims(&format!("{aud} urn:zitadel:iam:org:projects:roles"), &project).await;
    assert_eq!(full["aud"], json!([project]));
    assert_eq!(full[&ours]["admin"], json!({"7002": "beta.localhost"}));
    assert!(full.get("urn:zitadel:iam:org:project:roles").is_none(), "no client project, no generic claim");

    let one = claims(&format!("{aud} urn:zitadel:iam:org:project:role:admin"), &project).await;
    assert_eq!(one[&ours], json!({"admin": {"7002": "beta.localhost"}}));

    let scope = format!(
        "{aud} urn:zitadel:iam:org:projects:roles urn:zitadel:iam:org:roles:id:7001 urn:zitadel:iam:org:id:7002"
    );
    let narrowed = claims(&scope, &project).await;
    assert_eq!(narrowed[&ours], json!({"member": {"7001": "acme.localhost"}}));
    assert_eq!(
        narrowed["urn:zitadel:iam:user:resourceowner:id"], "7001",
        "its own organisation, whatever it asked for"
    );
    assert!(narrowed.get("urn:zitadel:iam:org:id").is_none());
}

#[tokio::test]
async fn the_token_endpoint_refuses_in_rfc_6749s_words() {
    let (issuer, _) = issuer().await;
    let post = async |form: &[(&str, &str)]| {
        let answer = Client::new().post(format!("{}/oauth/v2/token", issuer.url())).form(form).send().await.unwrap();
        (
            answer.status().as_u16(),
            answer.json::<Value>().await.unwrap()["error"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let grant = ("grant_type", "client_credentials");
    let good = [grant, ("client_id", "bot"), ("client_secret", "s3+cr:et")];
    assert_eq!(post(&good).await, (200, String::new()), "the form is as good as Basic");
    let refused = |status, error: &str| (status, error.to_owned());
    assert_eq!(post(&[grant]).await, refused(401, "invalid_client"));
    assert_eq!(post(&[grant, ("client_id", "bot"), ("client_secret", "no")]).await, refused(401, "invalid_client"));
    assert_eq!(post(&[("grant_type", "password")]).await, refused(400, "unsupported_grant_type"));
    assert_eq!(post(&[]).await, refused(400, "invalid_request"));
    issuer.remove_user("9001");
    assert_eq!(post(&good).await, refused(401, "invalid_client"));
}

#[tokio::test]
async fn introspection_tells_all_or_nothing() {
    let (issuer, clock) = issuer().await;
    let api = issuer.api_client().clone();
    let client = (api.id.as_str(), api.secret.as_str());
    let ours = format!("urn:zitadel:iam:org:project:{}:roles", issuer.project_id());
    let subject = "286399320075272196";
    let jwt = issuer.mint(subject, Duration::from_secs(900)).unwrap();
    let opaque = issuer.opaque(subject).unwrap();
    assert!(!opaque.contains('.'));
    for token in [&jwt, &opaque] {
        let (status, body) = introspect(&issuer, client, token).await;
        assert_eq!((status, &body["active"], &body["sub"]), (StatusCode::OK, &json!(true), &json!(subject)));
        assert_eq!((&body["token_type"], &body["username"]), (&json!("Bearer"), &json!("ada@acme.localhost")));
        assert!(body["scope"].as_str().unwrap().starts_with("openid profile email "));
        assert_eq!(body[&ours], body["urn:zitadel:iam:org:project:roles"]);
        assert_eq!(body[&ours]["admin"], json!({"7002": "beta.localhost"}));
        assert_eq!(body["alchemi:account_id"], "acme");
    }

    let inactive = (StatusCode::OK, json!({"active": false}));
    let id = issuer.claims(subject, Duration::from_secs(900)).unwrap()["jti"].as_str().unwrap().to_owned();
    let foreign = token(&issuer, "openid").await.1["access_token"].as_str().unwrap().to_owned();
    let forged = {
        let (other, _) = self::issuer().await;
        other.mint(subject, Duration::from_secs(900)).unwrap()
    };
    for bad in ["", "nonsense", "a.b.c", &id, &foreign, &forged] {
        assert_eq!(introspect(&issuer, client, bad).await, inactive, "{bad}");
    }

    let (status, body) = introspect(&issuer, ("bot", "s3%2Bcr%3Aet"), &jwt).await;
    assert_eq!((status, &body["error"]), (StatusCode::UNAUTHORIZED, &json!("unauthorized_client")));
    let (status, body) = introspect(&issuer, (&api.id, "wrong"), &jwt).await;
    assert_eq!((status, &body["error"]), (StatusCode::UNAUTHORIZED, &json!("invalid_client")));

    clock.advance(Duration::from_secs(900));
    assert_eq!(introspect(&issuer, client, &jwt).await, inactive, "expired");
    assert_eq!(introspect(&issuer, client, &opaque).await.1["active"], json!(true));
    issuer.remove_user(subject);
    assert_eq!(introspect(&issuer, client, &opaque).await, inactive, "user gone");
}

#[tokio::test]
async fn only_loopback_will_do() {
    let open = "0.0.0.0:0".parse().unwrap();
    let refused = DevIssuer::start(open, Arc::new(SystemClock), Arc::new(RandomIds)).await;
    assert!(matches!(refused, Err(DevError::NotLoopback(address)) if address == open));
}

#[tokio::test]
async fn secrets_stay_out_of_debug_output() {
    let (issuer, _) = issuer().await;
    let shown = format!("{issuer:?} {:?}", issuer.api_client());
    assert!(!shown.contains(&issuer.api_client().secret) && !shown.contains("s3+cr:et"));
}
