//! The daemon around a plain machine, with a small metad in this process: joining, registering, calls, the watch, the
//! admin service, the end.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use api::v1::blockd_admin_client::BlockdAdminClient;
use api::v1::node_service_server::{NodeService, NodeServiceServer};
use api::v1::{
    AddDriveRequest, BlockdSessionsRequest, BlockdStatusRequest, NodeAnswer, NodeCall, RegisterAnswer,
    RegisterRequest, ShutdownRequest, WatchEvent, WatchRequest,
};
use blockd::config::{Config, LogFormat};
use blockd::daemon;
use blockd::shard::End;
use common::{Guest, Plain, SIZE};
use nbd::client::{Event as Said, Goal};
use proto::control::{MetaAnswer, MetaRequest, NodeSummary, VolumeSummary, WatchUpdate};
use proto::{BranchId, Geometry, NodeId, VolumeId};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status};

const CLUSTER: u128 = 0xabc;

/// Runs a daemon with a plain machine; `prepare` says how that one is.
fn daemon(
    config: &Config,
    prepare: impl FnOnce(&mut Plain) + Send + 'static,
) -> (JoinHandle<End>, mpsc::Receiver<&'static str>) {
    let ((tell, told), (echo, _)) = (mpsc::channel(), mpsc::channel());
    let (config, path) = (config.clone(), config.state_dir.join("../blockd.toml"));
    let thread = std::thread::spawn(move || {
        let log = blockd::logging::start("warn", LogFormat::Logfmt);
        daemon::run(&config, path, log, |params| {
            assert_eq!((params.node, params.cluster.0, params.process.0), (NodeId(5), CLUSTER, 1));
            let mut plain = Plain::new(echo, tell);
            prepare(&mut plain);
            plain
        })
        .unwrap()
    });
    (thread, told)
}

/// By its socket.
fn shut_down(config: &Config) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let uri = format!("unix://{}", config.admin_socket.display());
        let mut client = BlockdAdminClient::connect(uri).await.unwrap();
        client.shutdown(ShutdownRequest { reason: "the test ends".into() }).await.unwrap();
    });
}

/// A metad that leads, or says who does.
#[derive(Clone)]
struct SmallMetad {
    leader: Option<String>,
    registered: Arc<Mutex<Vec<RegisterRequest>>>,
}

#[tonic::async_trait]
impl NodeService for SmallMetad {
    async fn register(&self, r: Request<RegisterRequest>) -> Result<Response<RegisterAnswer>, Status> {
        if let Some(leader) = &self.leader {
            return Err(api::error::not_leader(Some(leader.clone())));
        }
        let r = r.into_inner();
        let answer = RegisterAnswer {
            node: if r.node == 0 { 5 } else { r.node },
            name: r.name.clone(),
            cluster: CLUSTER.to_be_bytes().to_vec(),
            metad: Vec::new(),
        };
        self.registered.lock().unwrap().push(r);
        Ok(Response::new(answer))
    }
    async fn call(&self, r: Request<NodeCall>) -> Result<Response<NodeAnswer>, Status> {
        let request: MetaRequest = postcard::from_bytes(&r.into_inner().request).unwrap();
        let MetaRequest::Volumes { .. } = request else { panic!("the plain machine asks nothing else") };
        let geometry = Geometry { size: SIZE, chunk_shift: 24 };
        let summary = VolumeSummary {
            volume: VolumeId(1),
            branch: BranchId(1),
            name: "mem".into(),
            geometry,
            ready: true,
        };
        let answer = postcard::to_stdvec(&MetaAnswer::Volumes(vec![summary])).unwrap();
        Ok(Response::new(NodeAnswer { answer }))
    }
    type WatchStream = std::pin::Pin<Box<dyn Stream<Item = Result<WatchEvent, Status>> + Send>>;
    async fn watch(&self, r: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if let Some(leader) = &self.leader {
            return Err(api::error::not_leader(Some(leader.clone())));
        }
        assert_eq!(r.into_inner().node, 5);
        // Nobody listens there: the plain machine's dial fails, and it says so.
        let peer =
            NodeSummary { node: NodeId(9), name: "n9".into(), address: "localhost:1".into(), up: true };
        let update = postcard::to_stdvec(&WatchUpdate::Nodes(vec![peer])).unwrap();
        let events = tokio_stream::iter([Ok(WatchEvent { update })]);
        Ok(Response::new(Box::pin(tokio_stream::StreamExt::merge(events, tokio_stream::pending()))))
    }
}

/// Serves in a thread of its own until the test's process ends.
fn serve(leader: Option<String>) -> (String, Arc<Mutex<Vec<RegisterRequest>>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    listener.set_nonblocking(true).unwrap();
    let metad = SmallMetad { leader, registered: Arc::default() };
    let registered = metad.registered.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let service = NodeServiceServer::new(metad);
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
    });
    (address, registered)
}

fn config(dir: &Path, metad: Vec<String>) -> Config {
    let list = metad.iter().map(|m| format!("\"{m}\"")).collect::<Vec<_>>().join(", ");
    let text = format!(
        "name = \"edge\"\nstate_dir = \"state\"\nnbd_socket = \"nbd.sock\"\nadmin_socket = \"admin.sock\"\n\
         admin_address = \"127.0.0.1:0\"\ndrives = [\"drive\"]\nmetad = [{list}]\n"
    );
    let config = Config::parse(&text, &dir.join("blockd.toml")).unwrap();
    assert_eq!(config.log_format, LogFormat::Logfmt);
    config
}

fn wait_for(path: PathBuf) -> String {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Ok(text) = std::fs::read_to_string(&path) {
            return text.trim().to_string();
        }
        assert!(Instant::now() < deadline, "{}", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn get(address: &str, page: &str) -> String {
    let mut s = TcpStream::connect(address).unwrap();
    write!(s, "GET {page} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    s.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_node_joins_serves_tells_of_itself_and_ends_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let (leader, registered) = serve(None);
    let (follower, _) = serve(Some(leader));
    let config = config(dir.path(), vec![follower]);
    let wish = blockd::format::Wish {
        tool: blockd::format::Tool::BlockdFormat,
        cluster: proto::ClusterId(CLUSTER),
        node: NodeId(5),
        size: Some(256 << 20),
        preallocate: false,
        force: false,
    };
    let drive = blockd::format::format(&dir.path().join("drive"), &wish).unwrap().drive;
    let (thread, told) = daemon(&config, |_| {});
    let data = wait_for(dir.path().join("state/data.addr"));
    let admin = wait_for(dir.path().join("state/admin.addr"));
    assert_eq!(
        told.recv_timeout(Duration::from_secs(10)).unwrap(),
        "link closed",
        "the watch came, the dial failed"
    );

    let mut guest = Guest::open(&config.nbd_socket);
    guest.write(4096, &[7; 4096]);
    assert_eq!(guest.read(4096, 4096), [7; 4096]);
    let (_looker, said) = Guest::connect(&config.nbd_socket, "", Goal::List);
    assert!(matches!(said, Said::Listed(l) if l.len() == 1), "metad's list");

    // The drive is opened beside all that: it may come a moment later.
    let sized = format!("drive\",drive=\"100\"}} {}", 256 << 20);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !get(&admin, "/metrics").contains(&sized) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(get(&admin, "/healthz").ends_with("ok\n"));
    let metrics = get(&admin, "/metrics");
    assert!(metrics.contains("blockd_export_connections{volume=\"mem\"} 1\n"), "{metrics}");
    assert!(metrics.contains(&sized), "{metrics}");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // By the port one may look, not act.
        let mut stranger = BlockdAdminClient::connect(format!("http://{admin}")).await.unwrap();
        let path = dir.path().join("drive").display().to_string();
        let add = AddDriveRequest { path, format: true, force: "mine now".into() };
        for refused in [
            stranger.shutdown(ShutdownRequest { reason: "by the port".into() }).await.map(|_| ()),
            stranger.add_drive(add).await.map(|_| ()),
            stranger.status(BlockdStatusRequest {}).await.map(|_| ()),
        ] {
            assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);
        }
        let uri = format!("unix://{}", config.admin_socket.display());
        let mut client = BlockdAdminClient::connect(uri).await.unwrap();
        let status = client.status(BlockdStatusRequest {}).await.unwrap().into_inner();
        assert_eq!((status.node, status.process, status.data_address), (5, 1, data));
        assert_eq!((status.drives.len(), status.notices.len()), (1, 0));
        assert_eq!((&*status.drives[0].state, &*status.drives[0].reason), ("serving", ""));
        assert!(client.sessions(BlockdSessionsRequest {}).await.is_ok());
        client.shutdown(ShutdownRequest { reason: "the test ends".into() }).await.unwrap();
    });
    assert_eq!(thread.join().unwrap(), End::Clean);
    assert!(!config.nbd_socket.exists() && !config.admin_socket.exists());
    let requests = registered.lock().unwrap();
    assert_eq!(requests[0].node, 0, "it joined");
    let last = requests.last().unwrap();
    assert_eq!((last.node, last.drives.len()), (5, 1));
    assert_eq!(last.drives[0].drive, drive.0);
}

#[test]
fn what_does_not_serve_is_named_with_its_reason_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (metad, _) = serve(None);
    let mut config = config(dir.path(), vec![metad]);
    for name in ["drive", "gone"] {
        let path = dir.path().join(name);
        let wish = blockd::format::Wish {
            tool: blockd::format::Tool::BlockdFormat,
            cluster: proto::ClusterId(CLUSTER),
            node: NodeId(5),
            size: Some(256 << 20),
            preallocate: false,
            force: false,
        };
        if name == "drive" {
            blockd::format::format(&path, &wish).unwrap();
        } else {
            config.drives.push(path);
        }
    }
    let (thread, _told) = daemon(&config, |plain| {
        plain.fates.push_back(node::DriveState::Stranger);
        plain.attaching.push(node::SeatView {
            volume: "v7".into(),
            kind: proto::control::SessionKind::Guest,
            since: proto::Time(1),
            reason: "the volume is attached on node n3 (epoch 2)".into(),
            exports: 1,
            requests: 4,
        });
    });
    let admin = wait_for(dir.path().join("state/admin.addr"));
    let deadline = Instant::now() + Duration::from_secs(10);
    let page = loop {
        let page = get(&admin, "/healthz");
        if page.contains("stranger") && page.contains("gone does not") {
            break page;
        }
        assert!(Instant::now() < deadline, "{page}");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(page.starts_with("HTTP/1.1 503"), "{page}");
    for want in [
        "/drive (0000000000000064) does not serve (stranger for ",
        " s): metad calls it a stranger",
        "blockd-format --force",
        "/gone does not serve (failed for ",
        " s): it cannot be opened: ",
        "No such file",
        "Tried again every 30 s",
        "volume v7 is not attached for ",
        "(1 exports, 4 requests wait): the volume is attached on node n3 (epoch 2)",
    ] {
        assert!(page.contains(want), "{want}: {page}");
    }
    let metrics = get(&admin, "/metrics");
    assert!(metrics.contains("/drive\",drive=\"100\"} 0\n"), "{metrics}");
    assert!(metrics.contains("blockd_session_waiting{branch=\"\",volume=\"v7\",reason=\"attaching\"} 1\n"));
    shut_down(&config);
    assert_eq!(thread.join().unwrap(), End::Clean);
}

#[test]
fn a_node_that_waits_for_metad_lets_no_guest_in() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let mut config = config(dir.path(), vec![address.to_string()]);
    let list = dir.path().join("metads");
    config.metad_file = Some(list.clone());
    let (thread, _told) = daemon(&config, |_| {});
    wait_for(dir.path().join("state/data.addr"));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!config.nbd_socket.exists() && !config.admin_socket.exists(), "a guest is refused at once");
    let (metad, _) = serve(None);
    std::fs::write(&list, metad).unwrap();
    wait_for(dir.path().join("state/admin.addr"));
    Guest::open(&config.nbd_socket).write(0, &[1; 4096]);
    shut_down(&config);
    assert_eq!(thread.join().unwrap(), End::Clean);
}
