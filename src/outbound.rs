//! Where we may connect to: the check of addresses that tenants and operators write
//! into settings, so that none leads inside (OWASP API7:2023, SSRF).
//!
//! Two steps, because a name says nothing about where it leads: [`OutboundRules::check`]
//! looks at the text when a setting is written, [`OutboundRules::admits`] at the address
//! when it is used. [`client`] is an HTTP client that does the second for every
//! connection, and follows no redirect.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use url::{Host, Url};

mod resolver;
mod trust;

pub use resolver::{Lookup, client};
pub use trust::with_trust_store;

/// Longest URL, in bytes.
const MAX_LEN: usize = 2048;

/// Which addresses settings may name beside those of the public internet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutboundRules {
    /// Whether this machine may be named, by plain `http` too; for development.
    pub allow_loopback: bool,
    /// Networks inside that may be named, such as `10.1.0.0/16`.
    #[serde(deserialize_with = "networks")]
    pub allow_networks: Vec<IpNet>,
}

fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let network = |text: String| match text.trim().parse() {
        Ok(network) => Ok(network),
        Err(_) => Err(D::Error::custom(format!("{text:?} is no network: write one as 10.1.0.0/16"))),
    };
    Vec::<String>::deserialize(deserializer)?.into_iter().map(network).collect()
}

/// Why an address is refused. The text does not repeat the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not a URL of the kind that is wanted.
    #[error("must be an https:// URL without credentials")]
    NotHttps,
    /// Leads inside.
    #[error("leads to this machine or into a network that is not the internet, which the gateway does not allow")]
    Inside,
}

/// Networks that are not the public internet, from IANA's special-purpose registries
/// (RFC 6890), with multicast and reserved space.
const INSIDE_V4: [Ipv4Net; 16] = [
    v4([0, 0, 0, 0], 8),
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 0, 0, 0], 24),
    v4([192, 0, 2, 0], 24),
    v4([192, 31, 196, 0], 24),
    v4([192, 52, 193, 0], 24),
    v4([192, 88, 99, 0], 24),
    v4([192, 168, 0, 0], 16),
    v4([198, 18, 0, 0], 15),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    v4([224, 0, 0, 0], 3),
];

/// Of IPv6 only global unicast space is the internet, but for these parts of it:
/// protocol assignments with Teredo, documentation, 6to4.
const GLOBAL_V6: Ipv6Net = v6([0x2000, 0], 3);
const INSIDE_V6: [Ipv6Net; 4] =
    [v6([0x2001, 0], 23), v6([0x2001, 0xdb8], 32), v6([0x2002, 0], 16), v6([0x3fff, 0], 20)];

/// Addresses that translators make of IPv4's (RFC 6052).
const NAT64: Ipv6Net = v6([0x64, 0xff9b], 96);

const fn v4(octets: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]), prefix)
}

const fn v6(head: [u16; 2], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(head[0], head[1], 0, 0, 0, 0, 0, 0), prefix)
}

/// Ends of names that no public resolver answers for.
const INSIDE_NAMES: [&str; 8] =
    ["localhost", "local", "localdomain", "internal", "intranet", "lan", "home.arpa", "corp"];

impl OutboundRules {
    /// Checks the text of a URL: `https` (or `http` to this machine, where that is
    /// allowed), no credentials, no name or literal address that leads inside. Reads
    /// addresses as browsers do (WHATWG), so that no spelling of them passes.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn check(&self, text: &str) -> Result<Url, Refused> {
        let text = text.trim();
        // A browser's parser drops some of these and turns others around; others' parsers do not.
        let odd = |c: char| c.is_control() || c.is_whitespace() || c == '\\';
        if text.len() > MAX_LEN || text.chars().any(odd) {
            return Err(Refused::NotHttps);
        }
        let url = Url::parse(text).map_err(|_| Refused::NotHttps)?;
        let authority = authority_of(text);
        let credentials = !url.username().is_empty() || url.password().is_some() || authority.contains('@');
        if credentials || authority.is_empty() {
            return Err(Refused::NotHttps);
        }
        let host = url.host().ok_or(Refused::NotHttps)?;
        let loopback = is_loopback_host(&host);
        match url.scheme() {
            "https" => {}
            "http" if loopback && self.allow_loopback => {}
            _ => return Err(Refused::NotHttps),
        }
        let admitted = match host {
            Host::Ipv4(ip) => self.admits(ip.into()),
            Host::Ipv6(ip) => self.admits(ip.into()),
            Host::Domain(_) if loopback => self.allow_loopback,
            // A name inside may lead into a network that is allowed: its address tells.
            Host::Domain(name) => !self.allow_networks.is_empty() || !is_inside(name),
        };
        if admitted { Ok(url) } else { Err(Refused::Inside) }
    }

    /// Whether a connection to `ip` may be made.
    pub fn admits(&self, ip: IpAddr) -> bool {
        let ip = embedded(ip);
        if self.allow_networks.iter().any(|network| network.contains(&ip)) {
            return true;
        }
        match ip {
            _ if ip.is_loopback() => self.allow_loopback,
            IpAddr::V4(ip) => !INSIDE_V4.iter().any(|network| network.contains(&ip)),
            IpAddr::V6(ip) => GLOBAL_V6.contains(&ip) && !INSIDE_V6.iter().any(|network| network.contains(&ip)),
        }
    }
}

/// The IPv4 address that an IPv6 address stands for, if it does.
fn embedded(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4.into(),
            None if NAT64.contains(&v6) => {
                let [.., a, b, c, d] = v6.octets();
                Ipv4Addr::new(a, b, c, d).into()
            }
            None => ip,
        },
        IpAddr::V4(_) => ip,
    }
}

/// Whether a URL leads to this machine by what it says: `localhost`, a name below it, or an
/// address of the loopback interface. Plain HTTP can be read by nobody else there.
pub fn is_loopback(url: &Url) -> bool {
    url.host().is_some_and(|host| match host {
        Host::Ipv4(ip) => ip.is_loopback(),
        // Not what a translator on the way would make of it: that leaves this machine.
        Host::Ipv6(ip) => ip.to_canonical().is_loopback(),
        Host::Domain(name) => ends_in(name, "localhost"),
    })
}

/// The same to be refused: whatever may lead there.
fn is_loopback_host(host: &Host<&str>) -> bool {
    match host {
        Host::Ipv4(ip) => ip.is_loopback(),
        Host::Ipv6(ip) => embedded((*ip).into()).is_loopback(),
        Host::Domain(name) => ends_in(name, "localhost"),
    }
}

/// Whether a name leads inside by how it is made: of one label, or below a domain that
/// is nobody's on the internet.
fn is_inside(name: &str) -> bool {
    !name.trim_end_matches('.').contains('.') || INSIDE_NAMES.iter().any(|end| ends_in(name, end))
}

fn ends_in(name: &str, end: &str) -> bool {
    let name = name.trim_end_matches('.');
    name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// What stands between `//` and the path. An empty user, as in `https://@host`, is
/// dropped by the parser.
fn authority_of(text: &str) -> &str {
    let rest = text.split_once("//").map_or("", |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: OutboundRules = OutboundRules { allow_loopback: false, allow_networks: Vec::new() };

    #[test]
    fn plain_http_is_for_what_surely_stays_here() {
        for (host, stays) in [
            ("localhost", true),
            ("api.localhost", true),
            ("127.0.0.1", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]", true),
            ("[64:ff9b::7f00:1]", false),
            ("localhost.example.com", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(&format!("http://{host}/").parse().unwrap()), stays, "{host}");
        }
    }

    #[test]
    fn what_leads_inside_is_refused_in_every_spelling() {
        for host in [
            // This machine
            "127.0.0.1",
            "127.1",
            "127.255.255.254",
            "2130706433",
            "0x7f000001",
            "0x7f.0.0.1",
            "0177.0.0.1",
            "017700000001",
            "0",
            "0.0.0.0",
            "[::1]",
            "[::]",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "localhost",
            "LOCALHOST",
            "localhost.",
            "api.localhost",
            "127.0.0.1.",
            "%31%32%37.0.0.1",
            "①②⑦.⓪.⓪.①",
            "１２７.０.０.１",
            "127。0。0。1",
            // Networks inside
            "10.0.0.1",
            "10.1",
            "167772161",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "192.168.257",
            "0xc0a80001",
            "100.64.0.1",
            "198.18.0.1",
            "[fc00::1]",
            "[fd12:3456::1]",
            "[fec0::1]",
            "[::ffff:10.0.0.1]",
            "[64:ff9b::a00:1]",
            "[64:ff9b:1::1]",
            "[2002:a00:1::1]",
            "[2001:0:4136:e378:8000:63bf:3fff:fdd2]",
            // The neighbours and clouds' metadata
            "169.254.169.254",
            "0xa9fea9fe",
            "0251.0376.0251.0376",
            "2852039166",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "[::ffff:a9fe:a9fe]",
            "metadata.google.internal",
            "redis",
            "printer.local",
            "router.lan",
            "nas.home.arpa",
            // Nobody
            "224.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "203.0.113.7",
            "[2001:db8::1]",
            "[ff02::1]",
        ] {
            let refused = STRICT.check(&format!("https://{host}/mcp"));
            assert_eq!(refused, Err(Refused::Inside), "{host}");
            let plain = STRICT.check(&format!("http://{host}/mcp"));
            assert_eq!(plain, Err(Refused::NotHttps), "{host}");
        }
    }

    #[test]
    fn what_is_no_https_url_is_refused() {
        let long = format!("https://example.com/{}", "a".repeat(MAX_LEN));
        for text in [
            "",
            "example.com",
            "/mcp",
            "//example.com",
            "http://example.com",
            "ftp://example.com",
            "file:///etc/passwd",
            "gopher://example.com",
            "javascript:alert(1)",
            "https://",
            "https:///etc/passwd@",
            "https://ada@example.com",
            "https://ada:secret@example.com",
            "https://:secret@example.com",
            "https://@example.com",
            "https://example.com\\@127.0.0.1",
            "https:\\\\127.0.0.1",
            "https://exa mple.com",
            "https://exam\tple.com",
            "https://example.com\r\nHost: inside",
            "https://[::1",
            "https://256.1.1.1",
            "https://1.2.3.4.5",
            "unix:/var/run/docker.sock",
            &long,
        ] {
            assert_eq!(STRICT.check(text), Err(Refused::NotHttps), "{text}");
        }
    }

    #[test]
    fn the_internet_is_admitted() {
        for text in [
            "https://example.com",
            " https://mcp.example.com:8443/sse?x=1#top ",
            "https://1.1.1.1/",
            "https://[2606:4700:4700::1111]/",
            "https://[::ffff:1.1.1.1]/",
            "https://bücher.example/",
            "https://localhost.example.com/",
            "https://notlocalhost.com/",
            "https://172.32.0.1/",
            "HTTPS://EXAMPLE.COM/",
        ] {
            assert!(STRICT.check(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn an_operator_may_allow_more() {
        let here = OutboundRules { allow_loopback: true, ..STRICT };
        for text in ["http://127.0.0.1:3000", "http://localhost:3000", "https://[::1]", "http://[::ffff:127.0.0.1]"] {
            assert!(here.check(text).is_ok(), "{text}");
        }
        assert_eq!(here.check("http://10.1.2.3"), Err(Refused::NotHttps));
        assert_eq!(here.check("https://10.1.2.3"), Err(Refused::Inside));
        let own = OutboundRules { allow_networks: vec!["10.1.0.0/16".parse().unwrap()], ..STRICT };
        for text in ["https://10.1.2.3", "https://[::ffff:10.1.2.3]", "https://mcp.corp.internal", "https://mcp"] {
            assert!(own.check(text).is_ok(), "{text}");
        }
        for text in ["https://10.2.2.3", "https://127.0.0.1", "https://localhost"] {
            assert_eq!(own.check(text), Err(Refused::Inside), "{text}");
        }
    }
}
