//! E-mail addresses whose identity is looked up beside the requests.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alchemi::clock::{ManualClock, Timestamp};
use alchemi::context::Domain;
use alchemi::id::{Id, RandomIds};
use alchemi::model::accounts::{Account, ZitadelConfig};
use alchemi::model::directory::{LookupState, User, UserStatus};
use alchemi::server::identities::{FindByEmail, resolve};
use alchemi::store::{DatabaseConfig, Store, migrate};
use futures_util::future::BoxFuture;

use crate::{insert, operator, places};

/// People by e-mail address; what is not among them cannot be asked.
#[derive(Default)]
struct People {
    known: HashMap<&'static str, Result<Vec<&'static str>, &'static str>>,
    organization: Option<&'static str>,
    asked: AtomicUsize,
}

impl FindByEmail for People {
    fn find<'a>(&'a self, email: &'a str, organization: Option<&'a str>) -> BoxFuture<'a, Result<Vec<String>, String>> {
        assert_eq!(organization, self.organization);
        self.asked.fetch_add(1, Ordering::SeqCst);
        let found = self.known.get(email).cloned().unwrap();
        let found = found.map(|ids| ids.into_iter().map(str::to_owned).collect()).map_err(str::to_owned);
        Box::pin(std::future::ready(found))
    }
}

async fn ready(url: &str) -> (Store, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at(Timestamp::from_secs(1_800_000_000)));
    let config = DatabaseConfig { url: url.to_owned(), max_connections: 4, ..DatabaseConfig::default() };
    let store = Store::open(&config, Arc::<ManualClock>::clone(&clock), Arc::new(RandomIds)).await.unwrap();
    migrate::apply(&store).await.unwrap();
    (store, clock)
}

async fn user(store: &Store, account: &Id<Account>, email: &str, identity: Option<&str>) -> User {
    let mut tx = store.begin(&operator().over(account.clone())).await.unwrap();
    let user = User {
        id: tx.new_id(),
        account_id: account.clone(),
        domain: Domain::Copilot,
        identity_user_id: identity.map(str::to_owned),
        email: Some(email.to_owned()),
        display_name: None,
        status: UserStatus::Active,
        created_by: None,
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
    };
    tx.insert_user(&user).await.unwrap();
    tx.commit().await.unwrap();
    user
}

async fn again(store: &Store, user: &User) -> User {
    let granted = operator().over(user.account_id.clone());
    store.read(&granted).await.unwrap().user(user.domain, &user.id).await.unwrap().unwrap()
}

/// How the search for a user stands.
async fn state(store: &Store, user: &User) -> Option<(LookupState, Option<String>)> {
    let mut tx = store.read(&operator().over(user.account_id.clone())).await.unwrap();
    let lookup = tx.identity_lookup(user.domain, &user.id).await.unwrap();
    lookup.map(|lookup| (lookup.state, lookup.detail))
}

#[tokio::test]
async fn an_address_becomes_an_identity_beside_the_request() {
    for place in places().await {
        let (store, clock) = ready(&place.url).await;
        let account = insert(&store, "Acme").await.account_id;
        let mut users = Vec::new();
        for email in ["ada@acme.com", "bob@acme.com", "nobody@acme.com", "two@acme.com", "down@acme.com"] {
            users.push(user(&store, &account, email, None).await);
        }
        let known = user(&store, &account, "known@acme.com", Some("8002")).await;
        assert_eq!(state(&store, &known).await, None, "whose identity is known needs no search");
        for user in &users {
            assert_eq!(state(&store, user).await, Some((LookupState::Pending, None)));
        }

        let mut people = People::default();
        people.known.extend([
            ("ada@acme.com", Ok(vec!["8001"])),
            ("bob@acme.com", Ok(vec!["8002"])),
            ("nobody@acme.com", Ok(vec![])),
            ("two@acme.com", Ok(vec!["8003", "8004"])),
            ("down@acme.com", Err("no answer within 10 s")),
        ]);
        assert_eq!(resolve(&store, &people).await.unwrap(), (1, false));
        let ada = again(&store, &users[0]).await;
        assert_eq!((ada.identity_user_id.as_deref(), ada.version), (Some("8001"), 2));
        assert_eq!(state(&store, &users[0]).await, None);
        let taken = state(&store, &users[1]).await;
        assert!(matches!(taken, Some((LookupState::Taken, Some(detail))) if detail.contains("8002")));
        assert_eq!(state(&store, &users[2]).await, Some((LookupState::Unknown, None)));
        let several = Some("one of: 8003, 8004".to_owned());
        assert_eq!(state(&store, &users[3]).await, Some((LookupState::Ambiguous, several)));
        let down = Some("no answer within 10 s".to_owned());
        assert_eq!(state(&store, &users[4]).await, Some((LookupState::Failed, down)));
        let mut tx = store.read(&operator().over(account.clone())).await.unwrap();
        assert!(tx.verify_audit().await.unwrap().valid);
        drop(tx);

        // What failed is tried again later, and only then.
        assert_eq!(resolve(&store, &people).await.unwrap(), (0, false));
        assert_eq!(people.asked.load(Ordering::SeqCst), 5);
        clock.advance(Duration::from_secs(30));
        people.known.insert("down@acme.com", Ok(vec!["8005"]));
        assert_eq!(resolve(&store, &people).await.unwrap(), (1, false));
        assert_eq!(again(&store, &users[4]).await.identity_user_id.as_deref(), Some("8005"));
        assert_eq!(people.asked.load(Ordering::SeqCst), 9);
        clock.advance(Duration::from_secs(30));
        assert_eq!(resolve(&store, &people).await.unwrap(), (0, false));
        assert_eq!(people.asked.load(Ordering::SeqCst), 9, "each pause is twice the one before");
        store.close().await;
    }
}

/// An answer about an address that was changed meanwhile is worth nothing.
#[tokio::test]
async fn a_user_who_was_changed_meanwhile_keeps_the_change() {
    for place in places().await {
        let (store, _) = ready(&place.url).await;
        let account = insert(&store, "Acme").await.account_id;
        let ada = user(&store, &account, "ada@acme.com", None).await;
        let granted = operator().over(account.clone());
        let mut tx = store.begin(&operator()).await.unwrap();
        let claimed = tx.claim_identity_lookups(10).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = store.begin(&operator()).await.unwrap();
        assert!(tx.claim_identity_lookups(10).await.unwrap().is_empty(), "claimed by one");
        drop(tx);
        let mut tx = store.begin(&granted).await.unwrap();
        let question = tx.lookup_question(Domain::Copilot, &ada.id).await.unwrap().unwrap();
        let changed = User { email: Some("other@acme.com".to_owned()), ..ada.clone() };
        tx.update_user(&changed).await.unwrap();
        let found = alchemi::model::directory::LookupOutcome::Found("8001".to_owned());
        assert!(!tx.settle_lookup(&claimed[0], &question, &found).await.unwrap());
        tx.commit().await.unwrap();
        assert_eq!(again(&store, &ada).await.identity_user_id, None);
        assert_eq!(state(&store, &ada).await, Some((LookupState::Pending, None)));
        store.close().await;
    }
}

/// People are looked for in the account's own organisation.
#[tokio::test]
async fn the_account_s_organisation_bounds_the_search() {
    for place in places().await {
        let (store, _) = ready(&place.url).await;
        let account = insert(&store, "Acme").await.account_id;
        let granted = operator().over(account.clone());
        let mut tx = store.begin(&granted).await.unwrap();
        let config = ZitadelConfig {
            enabled: true,
            issuer: None,
            audience: None,
            project_id: None,
            organization_id: Some("7001".to_owned()),
            role_prefix: None,
            role_mappings: std::collections::BTreeMap::new(),
            account_id_claim: None,
            product_domains_claim: None,
        };
        tx.put_zitadel_config(&config).await.unwrap();
        tx.commit().await.unwrap();
        user(&store, &account, "ada@acme.com", None).await;
        let mut people = People { organization: Some("7001"), ..People::default() };
        people.known.insert("ada@acme.com", Ok(vec!["8001"]));
        assert_eq!(resolve(&store, &people).await.unwrap(), (1, false));
        store.close().await;
    }
}
