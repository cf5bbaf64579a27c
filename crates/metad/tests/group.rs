//! Real metads in one process: an election, a leader that goes, a member that is fed by a snapshot, members that
//! come and go, a restart.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the report")]

use api::v1::cluster_service_client::ClusterServiceClient;
use api::v1::node_service_client::NodeServiceClient;
use api::v1::raft_service_client::RaftServiceClient;
use api::v1::{self, MetadMember};
use metad::config::Config;
use metad::raft::types::Raft;
use metad::server::Metad;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

struct Running {
    id: u64,
    address: String,
    raft: Raft,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

async fn start(dir: &Path, id: u64) -> Running {
    let text = format!("id = {id}\nstate_dir = \"m{id}\"\naddress = \"127.0.0.1:0\"\n");
    let config = Config::parse(&text, &dir.join("metad.toml")).unwrap();
    let metad = Metad::start(&config).await.unwrap();
    let (address, raft) = (metad.address.clone(), metad.raft.clone());
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(metad.serve(async { drop(stopped.await) }));
    Running { id, address, raft, stop, task }
}

impl Running {
    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
    async fn client(&self) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::connect(format!("http://{}", self.address)).await.unwrap()
    }
    fn leads(&self) -> bool {
        self.raft.metrics().borrow().current_leader == Some(self.id)
    }
}

/// Asks one after the other until the leader has answered.
async fn add_node(all: &[&Running], name: &str) -> Duration {
    let begun = Instant::now();
    let mut id = name.as_bytes().to_vec();
    id.resize(16, 0);
    let request = v1::AddNodeRequest {
        name: name.into(),
        zone: String::new(),
        data_address: "127.0.0.1:1".into(),
        request: id,
    };
    while begun.elapsed() < Duration::from_secs(10) {
        for m in all {
            match m.client().await.add_node(request.clone()).await {
                Ok(node) => {
                    assert_eq!(node.get_ref().name, name);
                    return begun.elapsed();
                }
                Err(s) => {
                    let detail = api::error::detail(&s).unwrap_or_default();
                    assert!([api::error::NOT_LEADER, 1009].contains(&detail.code), "{s:?}");
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nobody took {name}");
}

/// Waits until the leader's status says so.
async fn status_is(all: &[&Running], codes: &[&str], survives: bool) {
    let begun = Instant::now();
    loop {
        let status = leader(all).client().await.status(v1::StatusRequest {}).await.unwrap().into_inner();
        let metads: Vec<&str> =
            status.checks.iter().map(|c| c.code.as_str()).filter(|c| c.starts_with("METAD_")).collect();
        if metads == codes && status.survives_one_node == survives {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn names(m: &Running) -> Vec<String> {
    let list = m.client().await.list_nodes(v1::ListNodesRequest {}).await.unwrap().into_inner();
    list.nodes.into_iter().map(|n| n.name).collect()
}

fn leader<'a>(all: &[&'a Running]) -> &'a Running {
    all.iter().find(|m| m.leads()).expect("somebody leads")
}

async fn applied(m: &Running, index: u64) {
    m.raft.wait(Some(Duration::from_secs(10))).applied_index_at_least(Some(index), "follows").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_outlives_its_leader_and_changes_its_members() {
    let dir = tempfile::tempdir().unwrap();
    let (m1, m2, m3) = (start(dir.path(), 1).await, start(dir.path(), 2).await, start(dir.path(), 3).await);
    let members = [&m1, &m2, &m3]
        .iter()
        .map(|m| MetadMember { id: m.id, address: m.address.clone(), voter: true, matched: None })
        .collect();
    let init = v1::InitRequest { name: "t".into(), members, request: vec![9; 16] };
    let made = m1.client().await.init(init.clone()).await.unwrap().into_inner();
    let again = leader(&[&m1, &m2, &m3]).client().await.init(init).await.unwrap().into_inner();
    assert_eq!(again.cluster, made.cluster, "a repeat has the first answer");
    add_node(&[&m1, &m2, &m3], "a").await;

    // The leader goes; another one takes over within seconds, and has what was committed.
    let mut all = vec![m1, m2, m3];
    let at = all.iter().position(Running::leads).expect("somebody leads");
    let gone = all.remove(at);
    let id = gone.id;
    gone.stop().await;
    let took = add_node(&[&all[0], &all[1]], "b").await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    // `cluster status` names the dead one, until it is back.
    status_is(&[&all[0], &all[1]], &["METAD_DOWN"], false).await;
    // One that lives must not leave now: what is left could not even decide that.
    let lead = leader(&[&all[0], &all[1]]);
    for m in &all {
        assert_eq!(code(lead.client().await.remove_metad(v1::RemoveMetadRequest { id: m.id }).await), 1914);
    }

    // It comes back, at the same address, and follows.
    let back = start(dir.path(), id).await;
    let index = leader(&[&all[0], &all[1]]).raft.metrics().borrow().last_applied.unwrap().index;
    applied(&back, index).await;
    status_is(&[&all[0], &all[1]], &[], true).await;

    // A fourth one gets a snapshot: the log before it is gone.
    let lead = leader(&[&all[0], &all[1]]);
    lead.raft.trigger().snapshot().await.unwrap();
    let wait = lead.raft.wait(Some(Duration::from_secs(5)));
    wait.metrics(|m| m.snapshot.is_some_and(|s| s.index >= index), "a snapshot").await.unwrap();
    lead.raft.trigger().purge_log(index).await.unwrap();
    lead.raft.wait(Some(Duration::from_secs(5))).metrics(|m| m.purged.is_some(), "purged").await.unwrap();
    let m4 = start(dir.path(), 4).await;
    let join = v1::AddMetadRequest { id: 4, address: m4.address.clone(), token: made.token.clone() };
    let wrong = v1::AddMetadRequest { token: "x".into(), ..join.clone() };
    assert_eq!(
        api::error::detail(&lead.client().await.add_metad(wrong).await.unwrap_err()).unwrap().code,
        1003
    );
    lead.client().await.add_metad(join).await.unwrap();
    let wait = m4.raft.wait(Some(Duration::from_secs(5)));
    wait.metrics(|m| m.snapshot.is_some_and(|s| s.index >= index), "it came as a snapshot").await.unwrap();
    lead.client().await.remove_metad(v1::RemoveMetadRequest { id }).await.unwrap();
    let shown = lead.client().await.metad(v1::MetadRequest {}).await.unwrap().into_inner();
    assert!(shown.members.iter().any(|m| m.id == 4 && m.voter) && shown.members.iter().all(|m| m.id != id));

    // Of the four, only the new one and one more are left of a group of three: still a majority.
    back.stop().await;
    let at = all.iter().position(Running::leads).expect("somebody leads");
    all.remove(at).stop().await;
    add_node(&[&all[0], &m4], "c").await;
    assert_eq!(names(leader(&[&all[0], &m4])).await, ["a", "b", "c"]);
    all.remove(0).stop().await;
    m4.stop().await;
}

/// What refused it, by its code.
fn code<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) -> u32 {
    api::error::detail(&answer.unwrap_err()).expect("a refusal of ours").code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_id_alone_makes_nobody_that_node() {
    let dir = tempfile::tempdir().unwrap();
    let m1 = start(dir.path(), 1).await;
    let init = v1::InitRequest { name: "t".into(), members: Vec::new(), request: vec![1; 16] };
    let made = m1.client().await.init(init).await.unwrap().into_inner();
    add_node(&[&m1], "a").await;
    let mut door = NodeServiceClient::connect(format!("http://{}", m1.address)).await.unwrap();
    let owner = v1::RegisterRequest {
        node: 1,
        cluster: made.cluster.clone(),
        name: "a".into(),
        data_address: "127.0.0.1:11".into(),
        identity: vec![7; 16],
        process: 1,
        control: proto::control::CONTROL,
        ..Default::default()
    };
    let older = v1::RegisterRequest { control: 0, ..owner.clone() };
    assert_eq!(code(door.register(older).await), 1109, "a blockd of another version");
    assert_eq!(door.register(owner.clone()).await.unwrap().into_inner().node, 1);
    let again = v1::RegisterRequest { process: 2, data_address: "127.0.0.1:12".into(), ..owner.clone() };
    door.register(again.clone()).await.unwrap();

    // Another state folder with the same node id, from elsewhere.
    let other = v1::RegisterRequest { identity: vec![8; 16], data_address: "127.0.0.1:13".into(), ..owner };
    let refused = door.register(other).await.unwrap_err();
    let said = api::error::detail(&refused).unwrap();
    assert_eq!((said.code, said.exit), (1107, 4));
    assert!(said.message.contains("127.0.0.1:13") && said.message.contains("127.0.0.1:12"), "{said:?}");
    // A wrong cluster, none, an id that was never given, no identity, and a wrong token.
    let wrong = v1::RegisterRequest { cluster: vec![3; 16], ..again.clone() };
    assert_eq!(code(door.register(wrong).await), 1108);
    let none = v1::RegisterRequest { cluster: Vec::new(), ..again.clone() };
    assert_eq!(code(door.register(none.clone()).await), 1108);
    assert_eq!(code(door.register(v1::RegisterRequest { node: 9, ..again.clone() }).await), 1007);
    let nobody = v1::RegisterRequest { identity: vec![0; 16], ..again };
    assert_eq!(door.register(nobody).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let join = v1::RegisterRequest { node: 0, name: "b".into(), token: "x".into(), ..none };
    assert_eq!(code(door.register(join.clone()).await), 1003);
    // The token is to be had as the refusal says.
    let token = m1.client().await.token(v1::TokenRequest {}).await.unwrap().into_inner().token;
    assert_eq!(token, made.token);
    assert_eq!(door.register(v1::RegisterRequest { token, ..join }).await.unwrap().into_inner().node, 2);
    let nodes = m1.client().await.list_nodes(v1::ListNodesRequest {}).await.unwrap().into_inner().nodes;
    assert_eq!(nodes[0].data_address, "127.0.0.1:12", "what was refused changed nothing");
    m1.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistyped_first_member_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (m1, m2) = (start(dir.path(), 1).await, start(dir.path(), 2).await);
    let member = |id, address: &str| MetadMember { id, address: address.into(), voter: true, matched: None };
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for (id, address, want) in [
        (2, "127.0.0.1", 1913),
        (2, "127.0.0.1:74o0", 1913),
        (0, m2.address.as_str(), 1913),
        (2, m1.address.as_str(), 1904),
        (3, m2.address.as_str(), 1904),
        (2, closed.as_str(), 1903),
    ] {
        let members = vec![member(id, address)];
        let init = v1::InitRequest {
            name: "t".into(),
            members,
            request: address.bytes().cycle().take(16).collect(),
        };
        let begun = Instant::now();
        assert_eq!(code(m1.client().await.init(init).await), want, "{id}={address}");
        assert!(begun.elapsed() < Duration::from_secs(3), "the client waits 5 s");
    }
    let twice = vec![member(2, &m2.address), member(2, "127.0.0.1:9")];
    let init = v1::InitRequest { name: "t".into(), members: twice, request: vec![5; 16] };
    assert_eq!(code(m1.client().await.init(init).await), 1913);
    // Spelled right, the same metad makes the cluster.
    let members = vec![member(2, &m2.address)];
    let init = v1::InitRequest { name: "t".into(), members, request: vec![6; 16] };
    m1.client().await.init(init).await.unwrap();
    add_node(&[&m1, &m2], "a").await;
    // A member of that group is no first member of another.
    let m3 = start(dir.path(), 3).await;
    let members = vec![member(2, &m2.address)];
    let init = v1::InitRequest { name: "u".into(), members, request: vec![7; 16] };
    assert_eq!(code(m3.client().await.init(init).await), 1904);
    for m in [m1, m2, m3] {
        m.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_for_another_metad_or_cluster_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let m1 = start(dir.path(), 1).await;
    let init = v1::InitRequest { name: "t".into(), members: Vec::new(), request: vec![1; 16] };
    m1.client().await.init(init).await.unwrap();
    let mut peer = RaftServiceClient::connect(format!("http://{}", m1.address)).await.unwrap();
    let envelope = |to, cluster: Vec<u8>| v1::RaftEnvelope { to, from: 2, cluster };
    for (envelope, want) in [
        (envelope(7, Vec::new()), "this is metad 1, not 7"),
        (envelope(1, vec![5; 16]), "this metad belongs to another cluster"),
    ] {
        let call = v1::RaftCall { envelope: Some(envelope), payload: Vec::new() };
        assert_eq!(peer.vote(call.clone()).await.unwrap_err().message(), want);
        assert_eq!(peer.append(call).await.unwrap_err().message(), want);
    }
    let call = v1::RaftCall { envelope: Some(envelope(1, Vec::new())), payload: vec![255; 9] };
    assert_eq!(peer.vote(call).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    m1.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let m1 = start(dir.path(), 1).await;
    let init = v1::InitRequest { name: "t".into(), members: Vec::new(), request: vec![1; 16] };
    m1.client().await.init(init).await.unwrap();
    for name in ["a", "b"] {
        add_node(&[&m1], name).await;
    }
    let address = m1.address.clone();
    m1.stop().await;
    let m1 = start(dir.path(), 1).await;
    assert_eq!(m1.address, address, "the port taken last time");
    add_node(&[&m1], "c").await;
    assert_eq!(names(&m1).await, ["a", "b", "c"]);
    m1.stop().await;
}
