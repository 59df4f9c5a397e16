//! The example, run as whoever reads it would.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{sleep, timeout};

/// How long a program may take to start, or to end.
const PATIENCE: Duration = Duration::from_secs(60);

type Lines = tokio::io::Lines<BufReader<ChildStdout>>;

/// Its port, Ada's token, the process, and what else it says.
async fn start(upstream: &str) -> (u16, String, Child, Lines) {
    let program = std::env::current_exe().unwrap();
    let program = program.parent().unwrap().parent().unwrap().join("examples/gateway");
    // pingora does not tell which port it got: one outside of those that the system gives to others meanwhile.
    let first = std::process::id() % 12_000;
    let mut ports = (0..12_000).map(|n| 20_000 + u16::try_from((first + n) % 12_000).unwrap());
    let port = ports.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap();
    let mut process = Command::new(program)
        .args([&format!("127.0.0.1:{port}"), upstream])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("cargo build -p alchemi-pingora --example gateway");
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut token = String::new();
    while !token.starts_with("ey") {
        token = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().expect("a token");
    }
    (port, token, process, lines)
}

/// What one request is answered, with its connection closed behind it.
async fn ask(port: u16, head: &str, body: &str) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await;
    for _ in 0..PATIENCE.as_millis() / 20 {
        if socket.is_ok() {
            break;
        }
        sleep(Duration::from_millis(20)).await;
        socket = TcpStream::connect(("127.0.0.1", port)).await;
    }
    let mut socket = socket.expect("it listens");
    let request = format!("{head}\r\nHost: h\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn the_example_governs_its_paths_and_passes_others_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            let _ = socket.read(&mut head).await;
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine").await;
        }
    });
    let (port, token, mut process, mut lines) = start(&upstream).await;
    let asked = r#"{"model": "parrot", "max_tokens": 4, "messages": [{"role": "user", "content": "Pretty Polly"}]}"#;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json";
    let answer = ask(port, &format!("{head}\r\nAuthorization: Bearer {token}"), asked).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(r#""content":"Pretty Polly""#), "{answer}");
    let answer = ask(port, head, asked).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    let answer = ask(port, "POST /hello HTTP/1.1", "").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("mine"), "{answer}");
    // Nor does a path of one's own bring past the gate what two parsers could read differently.
    let answer = ask(port, "POST /hello HTTP/1.1\nX: y", "").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("malformed_request"), "{answer}");
    // It ends with everything in the ledger.
    let id = process.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
    let said = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap_or_default();
    assert_eq!(said, "the account has spent 0.012 credits");
    assert!(timeout(PATIENCE, process.wait()).await.unwrap().unwrap().success());
}
