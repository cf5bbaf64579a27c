//! What operators ask.

use super::convert::{self, request_id};
use super::lead::Lead;
use super::members::Members;
use super::node::gone;
use super::policies;
use super::snapshots;
use super::space;
use crate::core::{Core, wall_ms};
use crate::random;
use api::v1::cluster_service_server::ClusterService;
use api::v1::{self, Done, ErrorDetail};
use meta::admin::Shrink;
use meta::{AdminAnswer, AdminRefusal, AdminRequest, Class};
use proto::{ChunkIndex, ClusterId, DriveId, JobId, NodeId};
use tonic::{Code, Request, Response, Status};

pub struct ClusterRpc {
    pub core: Core,
    pub lead: Lead,
    pub members: Members,
}

type Answer<T> = Result<Response<T>, Status>;

/// Chunks in one answer at most.
const CHUNKS_MAX: u32 = 1 << 17;

pub fn refused(r: &AdminRefusal) -> Status {
    use meta::refusal::exit;
    let code = match r.exit() {
        exit::USAGE => Code::InvalidArgument,
        exit::NOT_FOUND => Code::NotFound,
        exit::EXISTS => Code::AlreadyExists,
        exit::PERMISSION => Code::PermissionDenied,
        exit::FULL => Code::ResourceExhausted,
        exit::UNKNOWN_OUTCOME => Code::Unknown,
        _ => Code::FailedPrecondition,
    };
    let detail = ErrorDetail {
        code: r.code().into(),
        message: r.what(),
        cause: r.cause(),
        fix: r.fix(),
        leader: None,
        exit: r.exit().into(),
    };
    api::error::status(code, &detail)
}

pub fn register_answer(node: NodeId, name: String, cluster: ClusterId, lead: &Lead) -> v1::RegisterAnswer {
    let metrics = lead.metrics();
    let metad = metrics.membership_config.membership().nodes().map(|(_, n)| n.addr.clone()).collect();
    v1::RegisterAnswer { node: node.0, name, cluster: cluster.0.to_be_bytes().to_vec(), metad }
}

fn unexpected(answer: &AdminAnswer) -> Status {
    Status::internal(format!("unexpected answer {answer:?}"))
}

impl ClusterRpc {
    /// Linearizable: this metad leads and has applied all that was committed before.
    async fn ask(&self, id: &[u8], request: AdminRequest) -> Result<AdminAnswer, Status> {
        let id = request_id(id)?;
        self.lead.confirm().await?;
        match self.core.admin(id, request).await.map_err(gone)? {
            Some(answer) => answer.map_err(|r| refused(&r)),
            None => Err(self.lead.check().err().unwrap_or_else(|| api::error::not_leader(None))),
        }
    }

    async fn done(&self, id: &[u8], request: AdminRequest) -> Answer<Done> {
        self.ask(id, request).await?;
        Ok(Response::new(Done {}))
    }

    async fn settings(&self) -> Answer<v1::Settings> {
        match self.ask(&[], AdminRequest::SettingsGet).await? {
            AdminAnswer::Settings(all) => {
                let settings = all.into_iter().map(|(key, value)| v1::Setting { key, value }).collect();
                Ok(Response::new(v1::Settings { settings }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn snapshots(&self, id: &[u8], request: AdminRequest) -> Answer<v1::Snapshots> {
        match self.ask(id, request).await? {
            AdminAnswer::Snapshots(all) => {
                let snapshots = all.into_iter().map(snapshots::snapshot).collect();
                Ok(Response::new(v1::Snapshots { snapshots }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn job(&self, job: JobId) -> Answer<v1::Job> {
        match self.ask(&[], AdminRequest::JobShow { job }).await? {
            AdminAnswer::Jobs(mut all) if all.len() == 1 => Ok(Response::new(convert::job(all.remove(0)))),
            other => Err(unexpected(&other)),
        }
    }

    async fn show_node_named(&self, node: String) -> Answer<v1::Node> {
        match self.ask(&[], AdminRequest::NodeShow { node }).await? {
            AdminAnswer::Nodes(mut nodes) if nodes.len() == 1 => {
                Ok(Response::new(convert::node(nodes.remove(0))))
            }
            other => Err(unexpected(&other)),
        }
    }
}

#[tonic::async_trait]
impl ClusterService for ClusterRpc {
    async fn init(&self, request: Request<v1::InitRequest>) -> Answer<v1::InitAnswer> {
        let r = request.into_inner();
        self.members.first(&r.members).await?;
        let order = AdminRequest::ClusterInit {
            cluster: ClusterId(random::u128().map_err(random::status)?),
            name: r.name,
            token: format!("{:032x}", random::u128().map_err(random::status)?),
        };
        match self.ask(&r.request, order).await? {
            AdminAnswer::ClusterCreated { cluster, token } => {
                Ok(Response::new(v1::InitAnswer { cluster: cluster.0.to_be_bytes().to_vec(), token }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn metad(&self, _: Request<v1::MetadRequest>) -> Answer<v1::MetadAnswer> {
        Ok(Response::new(self.members.show()))
    }

    async fn token(&self, _: Request<v1::TokenRequest>) -> Answer<v1::TokenAnswer> {
        self.lead.confirm().await?;
        let token = self.core.look(|s| s.head().cluster.as_ref().map(|c| c.token.clone())).await;
        let token = token.map_err(gone)?.ok_or_else(|| refused(&AdminRefusal::NoCluster))?;
        Ok(Response::new(v1::TokenAnswer { token }))
    }

    async fn add_metad(&self, request: Request<v1::AddMetadRequest>) -> Answer<Done> {
        let r = request.into_inner();
        self.lead.confirm().await?;
        let token =
            self.core.look(|s| s.head().cluster.as_ref().map(|c| c.token.clone())).await.map_err(gone)?;
        match token {
            None => return Err(refused(&AdminRefusal::NoCluster)),
            Some(t) if t != r.token => return Err(refused(&AdminRefusal::BadToken)),
            Some(_) => {}
        }
        self.members.add(r.id, &r.address).await?;
        Ok(Response::new(Done {}))
    }

    async fn remove_metad(&self, request: Request<v1::RemoveMetadRequest>) -> Answer<Done> {
        self.members.remove(request.into_inner().id).await?;
        Ok(Response::new(Done {}))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::ClusterStatus> {
        match self.ask(&[], AdminRequest::ClusterStatus).await? {
            AdminAnswer::Cluster(view) => {
                let metads = self.members.health(wall_ms());
                Ok(Response::new(convert::status(*view, self.members.show(), metads)))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn get_config(&self, _: Request<v1::GetConfigRequest>) -> Answer<v1::Settings> {
        self.settings().await
    }

    async fn set_config(&self, request: Request<v1::SetConfigRequest>) -> Answer<v1::Settings> {
        let r = request.into_inner();
        self.ask(&r.request, AdminRequest::SettingSet { key: r.key, value: r.value }).await?;
        self.settings().await
    }

    async fn list_events(&self, request: Request<v1::ListEventsRequest>) -> Answer<v1::Events> {
        let r = request.into_inner();
        let limit = usize::try_from(r.limit).unwrap_or(usize::MAX);
        match self.ask(&[], AdminRequest::Events { after: r.after, limit }).await? {
            AdminAnswer::Events(events) => {
                let events = events.into_iter().map(convert::event).collect();
                Ok(Response::new(v1::Events { events }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn list_nodes(&self, _: Request<v1::ListNodesRequest>) -> Answer<v1::Nodes> {
        match self.ask(&[], AdminRequest::NodeList).await? {
            AdminAnswer::Nodes(nodes) => {
                Ok(Response::new(v1::Nodes { nodes: nodes.into_iter().map(convert::node).collect() }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn show_node(&self, request: Request<v1::ShowNodeRequest>) -> Answer<v1::Node> {
        self.show_node_named(request.into_inner().node).await
    }

    async fn add_node(&self, request: Request<v1::AddNodeRequest>) -> Answer<v1::Node> {
        let r = request.into_inner();
        let order = AdminRequest::NodeAdd {
            name: r.name.clone(),
            zone: r.zone,
            address: r.data_address,
            // Whichever process registers as this node first.
            identity: 0,
            token: None,
        };
        self.ask(&r.request, order).await?;
        self.show_node_named(r.name).await
    }

    async fn drain_node(&self, request: Request<v1::DrainNodeRequest>) -> Answer<Done> {
        let r = request.into_inner();
        self.done(&r.request, AdminRequest::NodeDrain { node: r.node, drain: r.drain }).await
    }

    async fn remove_node(&self, request: Request<v1::RemoveNodeRequest>) -> Answer<Done> {
        let r = request.into_inner();
        self.done(&r.request, AdminRequest::NodeRemove { node: r.node }).await
    }

    async fn add_drive(&self, request: Request<v1::AddDriveToNodeRequest>) -> Answer<Done> {
        let r = request.into_inner();
        let (node, drive) = (NodeId(r.node), DriveId(r.drive));
        self.done(&[], AdminRequest::DriveAdd { node, drive, capacity: r.capacity, path: r.path }).await
    }

    async fn list_drives(&self, _: Request<v1::ListDrivesRequest>) -> Answer<v1::Drives> {
        match self.ask(&[], AdminRequest::DriveList).await? {
            AdminAnswer::Drives(drives) => {
                Ok(Response::new(v1::Drives { drives: drives.into_iter().map(convert::drive).collect() }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn show_drive(&self, request: Request<v1::ShowDriveRequest>) -> Answer<v1::Drive> {
        let drive = DriveId(request.into_inner().drive);
        match self.ask(&[], AdminRequest::DriveShow { drive }).await? {
            AdminAnswer::Drives(mut drives) if drives.len() == 1 => {
                Ok(Response::new(convert::drive(drives.remove(0))))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn drain_drive(&self, request: Request<v1::DrainDriveRequest>) -> Answer<Done> {
        let r = request.into_inner();
        self.done(&r.request, AdminRequest::DriveRetire { drive: DriveId(r.drive), retire: r.drain }).await
    }

    async fn remove_drive(&self, request: Request<v1::RemoveDriveRequest>) -> Answer<Done> {
        let r = request.into_inner();
        self.done(&r.request, AdminRequest::DriveRemove { drive: DriveId(r.drive) }).await
    }

    async fn create_volume(&self, request: Request<v1::CreateVolumeRequest>) -> Answer<v1::VolumeCreated> {
        let r = request.into_inner();
        let order = AdminRequest::VolumeCreate {
            size: r.size,
            chunk_shift: chunk_shift(r.chunk_bytes)?,
            class: class(&r)?,
            prefer: (r.near != 0).then_some(NodeId(r.near)),
            name: r.name,
        };
        match self.ask(&r.request, order).await? {
            AdminAnswer::VolumeCreated { volume } => Ok(Response::new(v1::VolumeCreated { id: volume.0 })),
            other => Err(unexpected(&other)),
        }
    }

    async fn clone_volume(&self, request: Request<v1::CloneVolumeRequest>) -> Answer<v1::VolumeCreated> {
        let r = request.into_inner();
        let (request, order) = (r.request.clone(), snapshots::clone(r)?);
        match self.ask(&request, order).await? {
            AdminAnswer::VolumeCreated { volume } => Ok(Response::new(v1::VolumeCreated { id: volume.0 })),
            other => Err(unexpected(&other)),
        }
    }

    async fn rollback_volume(&self, request: Request<v1::RollbackVolumeRequest>) -> Answer<Done> {
        let r = request.into_inner();
        let id = snapshots::order_id(&r.request)?;
        let order = AdminRequest::VolumeRollback {
            name: snapshots::name(r.name)?,
            safety: (!r.no_safety_snapshot).then_some(id),
        };
        self.done(&r.request, order).await
    }

    async fn list_volumes(&self, _: Request<v1::ListVolumesRequest>) -> Answer<v1::Volumes> {
        match self.ask(&[], AdminRequest::VolumeList).await? {
            AdminAnswer::Volumes(lines) => {
                let volumes = lines.into_iter().map(convert::line).collect();
                Ok(Response::new(v1::Volumes { volumes }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn show_volume(&self, request: Request<v1::ShowVolumeRequest>) -> Answer<v1::VolumeDetail> {
        let r = request.into_inner();
        let view = match self.ask(&[], AdminRequest::VolumeShow { name: r.name }).await? {
            AdminAnswer::Volume(view) => *view,
            other => return Err(unexpected(&other)),
        };
        let branch = view.branch;
        let end = r.first_chunk.saturating_add(r.chunk_limit.min(CHUNKS_MAX)).min(view.chunks);
        let chunks = self.core.look(move |state| {
            let one = |i| state.configuration(branch, i).map(|c| convert::chunk(state, i, &c));
            (r.first_chunk..end).filter_map(|i| one(ChunkIndex(i))).collect()
        });
        let chunks = chunks.await.map_err(gone)?;
        Ok(Response::new(v1::VolumeDetail { volume: Some(convert::volume(view)), chunks }))
    }

    async fn wait_volume(&self, request: Request<v1::WaitVolumeRequest>) -> Answer<v1::VolumeWaited> {
        let r = request.into_inner();
        let state = meta::view::WaitFor::parse(&r.state).ok_or_else(|| {
            let detail = ErrorDetail {
                code: 1211,
                message: format!("a volume has no state \"{}\"", r.state),
                cause: "known are ready, healthy, attached, detached, deleted".into(),
                fix: format!("blockctl volume wait {} --state healthy", r.name),
                leader: None,
                exit: 2,
            };
            api::error::status(Code::InvalidArgument, &detail)
        })?;
        match self.ask(&[], AdminRequest::VolumeWait { name: r.name, state }).await? {
            AdminAnswer::Waited(reached) => Ok(Response::new(v1::VolumeWaited { reached })),
            other => Err(unexpected(&other)),
        }
    }

    async fn resize_volume(&self, request: Request<v1::ResizeVolumeRequest>) -> Answer<v1::VolumeResized> {
        let r = request.into_inner();
        let shrink = r.shrink.then_some(Shrink { discard: r.discard });
        let order = AdminRequest::VolumeResize { name: r.name, size: r.size, shrink };
        let job = match self.ask(&r.request, order).await? {
            AdminAnswer::Done => None,
            AdminAnswer::JobStarted { job } => Some(self.job(job).await?.into_inner()),
            other => return Err(unexpected(&other)),
        };
        Ok(Response::new(v1::VolumeResized { job }))
    }

    async fn reconnect_volume(
        &self,
        request: Request<v1::ReconnectVolumeRequest>,
    ) -> Answer<v1::VolumeWaited> {
        match self.ask(&[], AdminRequest::VolumeReconnect { name: request.into_inner().name }).await? {
            AdminAnswer::Waited(reached) => Ok(Response::new(v1::VolumeWaited { reached })),
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_volume(&self, request: Request<v1::DeleteVolumeRequest>) -> Answer<v1::VolumeDeleted> {
        let r = request.into_inner();
        let order = AdminRequest::VolumeDelete {
            name: r.name,
            force: (!r.force.is_empty()).then_some(r.force),
            with_snapshots: r.with_snapshots,
            now: r.now,
            despite_clones: r.despite_clones,
        };
        let rests_until_ms = match self.ask(&r.request, order).await? {
            AdminAnswer::Done => None,
            AdminAnswer::Trashed { until_ms } => Some(until_ms),
            other => return Err(unexpected(&other)),
        };
        Ok(Response::new(v1::VolumeDeleted { rests_until_ms }))
    }

    async fn list_orphans(&self, _: Request<v1::ListOrphansRequest>) -> Answer<v1::OrphanList> {
        match self.ask(&[], AdminRequest::OrphanList).await? {
            AdminAnswer::Orphans(all) => {
                let drives = all.into_iter().map(convert::orphan).collect();
                Ok(Response::new(v1::OrphanList { drives }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn list_trash(&self, _: Request<v1::ListTrashRequest>) -> Answer<v1::Trash> {
        match self.ask(&[], AdminRequest::TrashList).await? {
            AdminAnswer::Trash(all) => {
                let volumes = all.into_iter().map(convert::trashed).collect();
                Ok(Response::new(v1::Trash { volumes }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn restore_volume(&self, request: Request<v1::RestoreVolumeRequest>) -> Answer<v1::VolumeCreated> {
        let r = request.into_inner();
        let order = AdminRequest::VolumeRestore { name: r.name, to: (!r.to.is_empty()).then_some(r.to) };
        match self.ask(&r.request, order).await? {
            AdminAnswer::VolumeCreated { volume } => Ok(Response::new(v1::VolumeCreated { id: volume.0 })),
            other => Err(unexpected(&other)),
        }
    }

    async fn purge_volume(&self, request: Request<v1::PurgeVolumeRequest>) -> Answer<Done> {
        let r = request.into_inner();
        self.done(&r.request, AdminRequest::VolumePurge { name: r.name }).await
    }

    async fn create_policy(&self, request: Request<v1::CreatePolicyRequest>) -> Answer<Done> {
        let r = request.into_inner();
        let id = r.request.clone();
        self.done(&id, policies::create(r)).await
    }

    async fn list_policies(&self, request: Request<v1::ListPoliciesRequest>) -> Answer<v1::Policies> {
        let name = Some(request.into_inner().name).filter(|n| !n.is_empty());
        match self.ask(&[], AdminRequest::PolicyList { name }).await? {
            AdminAnswer::Policies(all) => {
                let policies = all.into_iter().map(policies::policy).collect();
                Ok(Response::new(v1::Policies { policies }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_policy(&self, request: Request<v1::DeletePolicyRequest>) -> Answer<Done> {
        let r = request.into_inner();
        self.done(&r.request, AdminRequest::PolicyDelete { name: r.name }).await
    }

    async fn attach_policy(&self, request: Request<v1::AttachPolicyRequest>) -> Answer<Done> {
        let r = request.into_inner();
        let id = r.request.clone();
        self.done(&id, policies::attach(r)).await
    }

    async fn set_quota(&self, request: Request<v1::SetQuotaRequest>) -> Answer<Done> {
        let r = request.into_inner();
        let id = r.request.clone();
        self.done(&id, policies::quota(r)).await
    }

    async fn verify_volume(&self, request: Request<v1::VerifyVolumeRequest>) -> Answer<v1::VolumeVerifying> {
        let r = request.into_inner();
        let id = request_id(&r.request)?.ok_or_else(|| Status::invalid_argument("a request id is needed"))?;
        // Not kept: a repeat gives the order again, and the node knows it by its id.
        match self.ask(&[], AdminRequest::VolumeVerify { name: r.name, request: id }).await? {
            AdminAnswer::Verifying { node } => Ok(Response::new(v1::VolumeVerifying { node: node.0 })),
            other => Err(unexpected(&other)),
        }
    }

    async fn measure_volume(&self, request: Request<v1::MeasureVolumeRequest>) -> Answer<v1::VolumeSpace> {
        let r = request.into_inner();
        let id = request_id(&r.request)?.ok_or_else(|| Status::invalid_argument("a request id is needed"))?;
        // Not kept: a repeat asks how far it is.
        match self.ask(&[], AdminRequest::VolumeSpace { name: r.name, request: id }).await? {
            AdminAnswer::Space(view) => Ok(Response::new(space::space(*view))),
            other => Err(unexpected(&other)),
        }
    }

    async fn flatten_volume(&self, request: Request<v1::FlattenVolumeRequest>) -> Answer<v1::Job> {
        let r = request.into_inner();
        match self.ask(&r.request, AdminRequest::VolumeFlatten { name: r.name }).await? {
            AdminAnswer::JobStarted { job } => self.job(job).await,
            other => Err(unexpected(&other)),
        }
    }

    async fn list_jobs(&self, _: Request<v1::ListJobsRequest>) -> Answer<v1::Jobs> {
        match self.ask(&[], AdminRequest::JobList).await? {
            AdminAnswer::Jobs(all) => {
                Ok(Response::new(v1::Jobs { jobs: all.into_iter().map(convert::job).collect() }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn show_job(&self, request: Request<v1::ShowJobRequest>) -> Answer<v1::Job> {
        self.job(JobId(request.into_inner().id)).await
    }

    async fn cancel_job(&self, request: Request<v1::CancelJobRequest>) -> Answer<Done> {
        let r = request.into_inner();
        self.done(&r.request, AdminRequest::JobCancel { job: JobId(r.id) }).await
    }

    async fn create_snapshots(&self, request: Request<v1::CreateSnapshotsRequest>) -> Answer<v1::Snapshots> {
        let r = request.into_inner();
        let id = r.request.clone();
        self.snapshots(&id, snapshots::create(r)?).await
    }

    async fn list_snapshots(&self, request: Request<v1::ListSnapshotsRequest>) -> Answer<v1::Snapshots> {
        let volume = Some(request.into_inner().volume).filter(|v| !v.is_empty());
        self.snapshots(&[], AdminRequest::SnapshotList { volume }).await
    }

    async fn show_snapshot(&self, request: Request<v1::ShowSnapshotRequest>) -> Answer<v1::Snapshot> {
        let name = snapshots::name(request.into_inner().name)?;
        let mut found = self.snapshots(&[], AdminRequest::SnapshotShow { name }).await?.into_inner();
        found
            .snapshots
            .pop()
            .map(Response::new)
            .ok_or_else(|| Status::internal("an answer without a snapshot"))
    }

    async fn rename_snapshot(&self, request: Request<v1::RenameSnapshotRequest>) -> Answer<Done> {
        let r = request.into_inner();
        let name = snapshots::name(r.name)?;
        self.done(&r.request, AdminRequest::SnapshotRename { name, to: r.to }).await
    }

    async fn delete_snapshot(&self, request: Request<v1::DeleteSnapshotRequest>) -> Answer<Done> {
        let r = request.into_inner();
        self.done(&r.request, AdminRequest::SnapshotDelete { name: snapshots::name(r.name)? }).await
    }

    async fn protect_snapshot(&self, request: Request<v1::ProtectSnapshotRequest>) -> Answer<Done> {
        let r = request.into_inner();
        let force = (!r.force.is_empty()).then_some(r.force);
        let name = snapshots::name(r.name)?;
        self.done(&r.request, AdminRequest::SnapshotProtect { name, until_ms: r.until_ms, force }).await
    }

    async fn label_snapshot(&self, request: Request<v1::LabelSnapshotRequest>) -> Answer<Done> {
        let r = request.into_inner();
        let (set, remove) = (snapshots::labels(r.set), r.remove.into_iter().collect());
        let name = snapshots::name(r.name)?;
        self.done(&r.request, AdminRequest::SnapshotLabel { name, set, remove }).await
    }
}

fn chunk_shift(bytes: u64) -> Result<Option<u8>, Status> {
    if bytes == 0 {
        return Ok(None);
    }
    if !bytes.is_power_of_two() {
        let (low, high) = (1 << proto::limits::CHUNK_SHIFT_MIN, 1 << proto::limits::CHUNK_SHIFT_MAX);
        return Err(refused(&AdminRefusal::BadChunkSize { low, high }));
    }
    Ok(Some(u8::try_from(bytes.trailing_zeros()).expect("64 bits")))
}

pub fn class(r: &v1::CreateVolumeRequest) -> Result<Class, Status> {
    let too_many =
        |_| refused(&AdminRefusal::BadCopies { copies: r.copies, most: proto::limits::COPIES_MAX });
    let mut class = match u8::try_from(r.copies).map_err(too_many)? {
        0 => Class::default(),
        n => Class::of_copies(n),
    };
    if r.min_in_sync != 0 {
        let bad = AdminRefusal::BadMinInSync { min_in_sync: r.min_in_sync, copies: class.copies };
        class.min_in_sync = u8::try_from(r.min_in_sync).map_err(|_| refused(&bad))?;
    }
    class.write_through = r.write_through;
    class.wait_when_degraded = !r.fail_when_degraded;
    Ok(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(r: &v1::CreateVolumeRequest) -> Option<u32> {
        class(r).err().map(|s| api::error::detail(&s).expect("a refusal of ours").code)
    }

    #[test]
    fn numbers_of_copies_beyond_a_byte_are_refused_as_what_they_are() {
        let of = |copies, min_in_sync| v1::CreateVolumeRequest { copies, min_in_sync, ..Default::default() };
        assert_eq!(code(&of(300, 0)), Some(1209));
        assert_eq!(code(&of(3, 256)), Some(1210));
        assert_eq!(code(&of(3, 2)), None);
        let said = class(&of(300, 0)).unwrap_err();
        assert_eq!(said.message(), "a volume cannot have 300 copies");
    }
}
