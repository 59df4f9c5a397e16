//! Commands that run until they are told to stop.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Backend, Gateway};
use crate::{alchemi, run};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Ends it as a supervisor would; gives the rest of what it printed.
    fn terminate(mut self) -> (Option<i32>, String) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let began = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < PATIENCE, "it does not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        (self.0.wait().unwrap().code(), text)
    }
}

#[test]
fn dev_prints_lines_that_answer_as_they_promise() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = Running::start(alchemi(folder.path()).args(["dev", "--port", "0"]));
    let mut printed = BufReader::new(running.0.stdout.take().unwrap());
    let mut lines = Vec::new();
    // The last thing that it prints before it waits.
    while !lines.last().is_some_and(|line: &String| line.contains("Ctrl-C")) {
        let mut line = String::new();
        assert_ne!(printed.read_line(&mut line).unwrap(), 0, "it ended: {lines:#?}");
        lines.push(line);
    }
    let text = lines.concat();
    let commands = curl_lines(&text);
    assert!(commands.len() >= 4, "{text}");
    let answers: Vec<String> = commands.iter().map(|line| shell(&folder, line)).collect();
    assert!(answers.iter().any(|answer| answer.contains(r#""object":"chat.completion""#)), "{answers:#?}");
    assert!(answers.iter().any(|answer| answer.contains("data: [DONE]")), "{answers:#?}");
    assert!(answers.iter().any(|answer| answer.contains("model_denied")), "{answers:#?}");
    assert!(answers.iter().any(|answer| answer.contains("allocation_exhausted")), "{answers:#?}");
    running.0.stdout = Some(printed.into_inner());
    let (status, rest) = running.terminate();
    assert_eq!(status, Some(0));
    assert!(rest.contains("requests settled"), "{rest}");
}

/// Commands that start with `curl`, with the lines that a backslash continues.
fn curl_lines(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).filter(|line| line.starts_with("curl "));
    lines.map(str::to_owned).collect()
}

fn shell(folder: &tempfile::TempDir, line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).current_dir(folder.path()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_answers_until_it_is_told_to_stop() {
    let around = Gateway::start(Backend::Sqlite).await;
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    let mut command = alchemi(folder.path());
    command
        .arg("serve")
        .env("ALCHEMI_LISTEN", &address)
        .env("ALCHEMI_MASTER_KEY", "a-master-key-of-the-command-line-test")
        .env("ALCHEMI_UPSTREAM_URL", around.upstream.url())
        .env("ALCHEMI_LOG_FORMAT", "json")
        .env("ZITADEL_ISSUER", around.issuer.url())
        .env("ZITADEL_PROJECT_ID", around.issuer.project_id());
    let running = Running::start(&mut command);
    let ready = format!("http://{address}/readyz");
    let health = || run(alchemi(folder.path()).args(["healthcheck", "--url", &ready]));
    let began = Instant::now();
    while health().status != 0 {
        assert!(began.elapsed() < PATIENCE, "it is never ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(health().done().contains(r#""status":"ready""#));
    let (status, rest) = tokio::task::spawn_blocking(move || running.terminate()).await.unwrap();
    assert_eq!(status, Some(0));
    assert!(rest.contains("alchemi has stopped: 0 requests settled"), "{rest}");
    health().refused(1, &ready);
}

#[test]
fn an_address_that_is_taken_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = alchemi(folder.path());
    command.arg("serve").env("ALCHEMI_LISTEN", taken.local_addr().unwrap().to_string());
    command.env("ZITADEL_ISSUER", "https://login.example.com").env("ZITADEL_PROJECT_ID", "1");
    run(&mut command).refused(2, "ALCHEMI_LISTEN");
}

fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}
