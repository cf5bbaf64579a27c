//! The daemon around a plain machine, with a small metad in this process: joining, registering, calls, the watch, the
//! admin service, the end.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use api::v1::blockd_admin_client::BlockdAdminClient;
use api::v1::node_service_server::{NodeService, NodeServiceServer};
use api::v1::{
    BlockdSessionsRequest, BlockdStatusRequest, NodeAnswer, NodeCall, RegisterAnswer, RegisterRequest,
    ShutdownRequest, WatchEvent, WatchRequest,
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
use std::time::{Duration, Instant};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

const CLUSTER: u128 = 0xabc;

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
        cluster: proto::ClusterId(CLUSTER),
        node: NodeId(5),
        size: Some(256 << 20),
        preallocate: false,
        force: false,
    };
    let drive = blockd::format::format(&dir.path().join("drive"), &wish).unwrap().drive;
    let ((tell, told), (echo, _echoed)) = (mpsc::channel(), mpsc::channel());
    let (config_of, path) = (config.clone(), dir.path().join("blockd.toml"));
    let thread = std::thread::spawn(move || {
        let log = blockd::logging::start("warn", LogFormat::Logfmt);
        daemon::run(&config_of, path, log, |params| {
            assert_eq!((params.node, params.cluster.0, params.process.0), (NodeId(5), CLUSTER, 1));
            Plain::new(echo, tell)
        })
        .unwrap()
    });
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

    assert!(get(&admin, "/healthz").ends_with("ok\n"));
    // The drive is opened beside all that: it may come a moment later.
    let sized = format!("drive\",drive=\"0\"}} {}", 256 << 20);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !get(&admin, "/metrics").contains(&sized) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let metrics = get(&admin, "/metrics");
    assert!(metrics.contains("blockd_export_connections{volume=\"mem\"} 1\n"), "{metrics}");
    assert!(metrics.contains(&sized), "{metrics}");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = BlockdAdminClient::connect(format!("http://{admin}")).await.unwrap();
        let status = client.status(BlockdStatusRequest {}).await.unwrap().into_inner();
        assert_eq!((status.node, status.process, status.data_address), (5, 1, data));
        assert_eq!((status.drives.len(), status.notices.len()), (1, 0));
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
