//! Processes: how each party is started, on which core, and how it ends.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, thread};

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use crate::issuer::{PROJECT, Signer};
use crate::load::Load;
use crate::tenant::{MASTER_KEY, Tenant};
use crate::{Result, Target, on_one_thread};

const PROXY_CORE: &str = "0";
const LOAD_CORE: &str = "1";
const START: Duration = Duration::from_secs(30);

/// Serves HTTP/1.1 on a free port, whose address is printed first, until the process is ended.
pub(crate) async fn serve<H, F, B>(handler: H) -> Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = std::result::Result<Response<B>, Infallible>> + Send,
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = service_fn(handler.clone());
        tokio::spawn(async move { http1::Builder::new().serve_connection(TokioIo::new(stream), service).await });
    }
}

/// A child that ends with its owner.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `program` bound to one core. `taskset` turns into it, so that the process id is the program's own.
fn pinned(core: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", core]).arg(program).stdin(Stdio::null());
    command
}

/// Starts this executable again in a role that serves; gives the address that it prints.
fn role(core: &str, arguments: &[&str]) -> Result<(Process, SocketAddr)> {
    let mut process = Process(pinned(core, &env::current_exe()?).args(arguments).stdout(Stdio::piped()).spawn()?);
    let stdout = process.0.stdout.take().ok_or("no standard output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    Ok((process, line.trim().parse()?))
}

/// Runs one measurement; gives the line that it prints.
pub(crate) fn load(load: &Load) -> Result<String> {
    let mut command = pinned(LOAD_CORE, &env::current_exe()?);
    let output = command.arg("load").args(load.arguments()).stderr(Stdio::piped()).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// A proxy in front of the upstream.
pub(crate) struct Proxy {
    pub(crate) target: Target,
    pub(crate) address: SocketAddr,
    pub(crate) process: Process,
    /// Whose tokens it is sent, by [`Tenant::name`].
    pub(crate) tenant: &'static str,
}

/// Everything that runs during a comparison.
pub(crate) struct Proxies {
    pub(crate) running: Vec<Proxy>,
    pub(crate) tenants: Vec<Tenant>,
    _behind: [Process; 2],
}

impl Proxies {
    pub(crate) fn start(targets: &[Target], folder: &Path) -> Result<Self> {
        let signer = Arc::new(Signer::generate()?);
        let (upstream_process, upstream) = role(LOAD_CORE, &["upstream"])?;
        let (issuer_process, issuer) = role(LOAD_CORE, &["issuer", &signer.keys()])?;
        let issuer = format!("http://{issuer}");

        let mut proxies =
            Self { running: Vec::new(), tenants: Vec::new(), _behind: [upstream_process, issuer_process] };
        for target in targets.iter().copied().filter(|target| target.is_alchemi()) {
            let (name, enforcement) =
                if target == Target::Alchemi { ("enforced", "hard") } else { ("unenforced", "off") };
            let folder = folder.join(name);
            fs::create_dir(&folder)?;
            let (process, address) = start_alchemi(upstream, &issuer, enforcement, &folder)?;
            let url = format!("http://{address}");
            let seeded = Tenant::seed(&url, issuer.clone(), Arc::clone(&signer), name);
            proxies.tenants.push(on_one_thread(seeded)?);
            proxies.running.push(Proxy { target, address, process, tenant: name });
        }
        if proxies.tenants.is_empty() {
            proxies.tenants.push(Tenant::unseeded(issuer, signer));
        }

        let tenant = proxies.tenants.first().map_or("", Tenant::name); // the others pass any token on
        if targets.contains(&Target::Bare) {
            let (process, address) = role(PROXY_CORE, &["bare", &upstream.to_string()])?;
            proxies.running.push(Proxy { target: Target::Bare, address, process, tenant });
        }
        if targets.contains(&Target::Nginx) {
            match installed("nginx") {
                Some(nginx) => {
                    let (process, address) = start_nginx(&nginx, upstream, folder)?;
                    proxies.running.push(Proxy { target: Target::Nginx, address, process, tenant });
                }
                None => eprintln!("note: nginx is not installed, and is left out"),
            }
        }
        proxies.running.sort_by_key(|proxy| targets.iter().position(|target| *target == proxy.target));
        Ok(proxies)
    }
}

fn installed(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(program))
        .find(|file| file.exists())
}

/// One nginx process, with kept-alive connections on both sides and no access log.
fn start_nginx(nginx: &Path, upstream: SocketAddr, folder: &Path) -> Result<(Process, SocketAddr)> {
    let address = free_address()?;
    let dir = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {dir}/{kind};"))
        .concat();
    let configuration = format!(
        "daemon off; master_process off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/nginx.log;
        events {{ worker_connections 1024; }}
        http {{
            access_log off; {temporary}
            upstream behind {{ server {upstream}; keepalive 64; keepalive_requests 1000000000; }}
            server {{
                listen {address}; keepalive_requests 1000000000;
                location / {{ proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection ''; }}
            }}
        }}"
    );
    let (file, log) = (folder.join("nginx.conf"), folder.join("nginx.log"));
    fs::write(&file, configuration)?;
    let mut command = pinned(PROXY_CORE, nginx);
    command.arg("-c").arg(&file).arg("-e").arg(&log).stderr(Stdio::null());
    let mut process = Process(command.spawn()?);
    wait_for(&mut process, || TcpStream::connect(address).is_ok(), &log)?;
    Ok((process, address))
}

/// `alchemi serve` as an operator would start it, with an embedded database.
fn start_alchemi(
    upstream: SocketAddr,
    issuer: &str,
    enforcement: &str,
    folder: &Path,
) -> Result<(Process, SocketAddr)> {
    let binary =
        env::var_os("ALCHEMI_BIN").map(PathBuf::from).or(option_env!("CARGO_BIN_EXE_alchemi").map(PathBuf::from));
    let binary = binary.ok_or("no alchemi binary: set ALCHEMI_BIN")?;
    let address = free_address()?;
    let log = folder.join("alchemi.log");
    let output = File::create(&log)?;
    let mut command = pinned(PROXY_CORE, &binary);
    command
        .arg("serve")
        .current_dir(folder)
        .env("ALCHEMI_LISTEN", address.to_string())
        .env("ALCHEMI_DATA_DIR", folder.join("data"))
        .env("ALCHEMI_MASTER_KEY", MASTER_KEY)
        .env("ALCHEMI_ENFORCEMENT", enforcement)
        .env("ALCHEMI_UPSTREAM_URL", format!("http://{upstream}"))
        .env("ALCHEMI_UPSTREAM_API_KEY", "sk-upstream")
        .env("DATABASE_URL", format!("sqlite:{}", folder.join("alchemi.db").display()))
        .env("ZITADEL_ISSUER", issuer)
        .env("ZITADEL_PROJECT_ID", PROJECT)
        .stdout(output.try_clone()?)
        .stderr(output);
    let mut process = Process(command.spawn()?);
    let ready = format!("http://{address}/readyz");
    let is_ready = || on_one_thread(async { Ok(reqwest::get(&ready).await?.error_for_status()?) }).is_ok();
    wait_for(&mut process, is_ready, &log)?;
    Ok((process, address))
}

/// A loopback address that was free a moment ago, for programs that cannot say which one they took.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

/// Waits until a process that has just been started is ready; says what it logged when it ends or takes too long.
fn wait_for(process: &mut Process, ready: impl Fn() -> bool, log: &Path) -> Result<()> {
    let began = Instant::now();
    while !ready() {
        if process.0.try_wait()?.is_some() || began.elapsed() > START {
            let log = fs::read_to_string(log).unwrap_or_default();
            return Err(format!("not ready after {:.1?}, having logged:\n{log}", began.elapsed()).into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
