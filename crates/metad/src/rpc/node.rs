//! What blockd asks.

use super::cluster::{refused, register_answer};
use super::convert::sixteen;
use super::lead::Lead;
use crate::core::{Core, Gone};
use api::v1::node_service_server::NodeService;
use api::v1::{NodeAnswer, NodeCall, RegisterAnswer, RegisterRequest, WatchEvent, WatchRequest};
use meta::{AdminAnswer, AdminRefusal, AdminRequest};
use proto::control::{CONTROL, MetaAnswer, MetaRequest};
use proto::{ClusterId, DriveId, NodeId, ProcessNumber};
use std::pin::Pin;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

pub struct NodeRpc {
    pub core: Core,
    pub lead: Lead,
}

pub fn gone(_: Gone) -> Status {
    Status::unavailable("metad is shutting down")
}

/// Who a request says it comes from.
fn sender(request: &MetaRequest) -> NodeId {
    match request {
        MetaRequest::Heartbeat { node, .. }
        | MetaRequest::Attach { node, .. }
        | MetaRequest::DriveOpened { node, .. }
        | MetaRequest::Measured { node, .. } => *node,
        MetaRequest::Detach { .. }
        | MetaRequest::Propose { .. }
        | MetaRequest::Chunks { .. }
        | MetaRequest::Created { .. }
        | MetaRequest::Views { .. }
        | MetaRequest::Sealed { .. }
        | MetaRequest::Cut { .. }
        | MetaRequest::Shrunk { .. }
        | MetaRequest::Kept { .. }
        | MetaRequest::Snapshot { .. }
        | MetaRequest::Deleted { .. }
        | MetaRequest::Volumes { .. } => NodeId(0),
    }
}

/// Answered from the state: the state must be up to date.
fn reads(request: &MetaRequest) -> bool {
    matches!(
        request,
        MetaRequest::Chunks { .. }
            | MetaRequest::Views { .. }
            | MetaRequest::Snapshot { .. }
            | MetaRequest::Volumes { .. }
    )
}

impl NodeRpc {
    /// A node without an id is added, if it has the token; one with an id tells where it is now, if it is the one that
    /// had it before.
    async fn add(&self, r: &RegisterRequest) -> Result<NodeId, Status> {
        let identity = u128::from_be_bytes(sixteen("identity", &r.identity)?);
        if identity == 0 {
            return Err(Status::invalid_argument("identity must not be 0"));
        }
        let (zone, address) = (r.zone.clone(), r.data_address.clone());
        let request = if r.node == 0 {
            let (name, token) = (r.name.clone(), Some(r.token.clone()));
            AdminRequest::NodeAdd { name, zone, address, identity, token }
        } else {
            let (node, process) = (NodeId(r.node), ProcessNumber(r.process));
            AdminRequest::NodeRegister { node, zone, address, identity, process }
        };
        match self.admin(request).await? {
            AdminAnswer::NodeAdded { node, .. } => Ok(node),
            other => Err(Status::internal(format!("unexpected answer {other:?}"))),
        }
    }

    async fn admin(&self, request: AdminRequest) -> Result<AdminAnswer, Status> {
        match self.core.admin(None, request).await.map_err(gone)? {
            None => Err(self.lead.check().err().unwrap_or_else(|| api::error::not_leader(None))),
            Some(answer) => answer.map_err(|r| refused(&r)),
        }
    }
}

#[tonic::async_trait]
impl NodeService for NodeRpc {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterAnswer>, Status> {
        let r = request.into_inner();
        if r.control != CONTROL {
            return Err(refused(&AdminRefusal::OtherControl { said: r.control, known: CONTROL }));
        }
        self.lead.confirm().await?;
        let cluster = self.core.look(|s| s.head().cluster.as_ref().map(|c| c.id)).await.map_err(gone)?;
        let cluster = cluster.ok_or_else(|| refused(&AdminRefusal::NoCluster))?;
        // Who joins with the token need not know the cluster; a node's id counts in its own cluster only.
        let said = if r.cluster.is_empty() {
            None
        } else {
            Some(ClusterId(u128::from_be_bytes(sixteen("cluster", &r.cluster)?)))
        };
        if said.map_or(r.node != 0, |said| said != cluster) {
            return Err(refused(&AdminRefusal::OtherCluster { node: NodeId(r.node), said, cluster }));
        }
        let node = self.add(&r).await?;
        for d in &r.drives {
            self.admin(AdminRequest::DriveAdd {
                node,
                drive: DriveId(d.drive),
                capacity: d.capacity,
                path: d.path.clone(),
            })
            .await?;
        }
        let name = self.core.look(move |s| s.node_name(node)).await.map_err(gone)?;
        Ok(Response::new(register_answer(node, name, cluster, &self.lead)))
    }

    async fn call(&self, request: Request<NodeCall>) -> Result<Response<NodeAnswer>, Status> {
        let call = request.into_inner();
        let request: MetaRequest = postcard::from_bytes(&call.request)
            .map_err(|e| Status::invalid_argument(format!("malformed request: {e}")))?;
        if reads(&request) {
            self.lead.confirm().await?;
        } else {
            self.lead.check()?;
        }
        if let MetaRequest::Heartbeat { node, .. } = request {
            self.core.clock(node, call.wall_ms);
        }
        let answer = self.core.node(sender(&request), request).await.map_err(gone)?;
        if answer == MetaAnswer::Unavailable {
            self.lead.check()?;
        }
        let answer = postcard::to_stdvec(&answer).expect("writing to a vector does not fail");
        Ok(Response::new(NodeAnswer { answer }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchEvent, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.lead.check()?;
        let WatchRequest { node, process } = request.into_inner();
        let updates = ReceiverStream::new(self.core.watch(NodeId(node), ProcessNumber(process)));
        let events = updates.map(|update| {
            let update = postcard::to_stdvec(&update).expect("writing to a vector does not fail");
            Ok(WatchEvent { update })
        });
        Ok(Response::new(Box::pin(events)))
    }
}
