//! Captures of LiteLLM: raw request and response bytes.

/// The response of a capture.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

pub(crate) fn response(name: &str) -> Response {
    let path = format!("{}/tests/fixtures/litellm/{name}.http", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).unwrap();
    let marker = b"### response\r\n";
    let at = memchr::memmem::find(&bytes, marker).unwrap() + marker.len();
    let head_end = memchr::memmem::find(&bytes[at..], b"\r\n\r\n").unwrap() + at;
    let head = std::str::from_utf8(&bytes[at..head_end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<_> =
        lines.map(|line| line.split_once(": ").unwrap()).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    let raw = &bytes[head_end + 4..];
    let chunked = headers.iter().any(|(n, v)| n.eq_ignore_ascii_case("transfer-encoding") && v == "chunked");
    Response { status, headers, body: if chunked { dechunk(raw) } else { raw.to_vec() } }
}

fn dechunk(mut raw: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = memchr::memmem::find(raw, b"\r\n").unwrap();
        let length = usize::from_str_radix(std::str::from_utf8(&raw[..line]).unwrap(), 16).unwrap();
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&raw[line + 2..line + 2 + length]);
        raw = &raw[line + 2 + length + 2..];
    }
}
