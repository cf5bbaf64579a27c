//! `cluster status`: the verdict, its reasons, and whether the loss of one node would be survived.
//! (Of metad's own members the edge knows; `metad` adds its lines.)

use crate::planner::Outlook;
use crate::refusal::AdminRefusal;
use crate::room::Room;
use crate::service::Service;
use crate::state::MetaState;
use crate::view::{ClusterView, Health, HealthCheck};
use proto::{BranchId, DriveId};
use std::collections::BTreeSet;

/// What all surveys come to.
#[derive(Default)]
struct Totals {
    degraded: u32,
    waiting: u32,
    unavailable: u32,
    fragile: bool,
    since: Option<u64>,
    left: u64,
    rate: u64,
    /// For what is missing on drives that are down.
    room: Room,
}

impl Service {
    pub(crate) fn cluster_view(&self, state: &MetaState) -> Result<ClusterView, AdminRefusal> {
        let cluster = state.head().cluster.as_ref().ok_or(AdminRefusal::NoCluster)?;
        let outlook = self.outlook(state);
        let totals = self.totals(state, &outlook);
        let mut checks = Vec::new();
        self.volume_checks(&totals, &mut checks);
        self.node_checks(state, &outlook, &mut checks);
        self.drive_checks(state, &outlook, &mut checks);
        self.clock_check(&mut checks);
        let space: Vec<(u64, u64)> = state.drives().keys().map(|d| self.space(state, *d)).collect();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(ClusterView {
            id: cluster.id,
            name: cluster.name.clone(),
            health: checks.iter().map(|c| c.health).max().unwrap_or(Health::Ok),
            survives_one_node: !totals.fragile,
            checks,
            nodes: count(state.nodes().len()),
            nodes_up: count(state.nodes().values().filter(|n| n.down.is_none()).count()),
            drives: count(state.drives().len()),
            drives_up: count(state.drives().keys().filter(|d| !state.drive_down(**d)).count()),
            volumes: count(state.volumes().len()),
            volumes_unwell: totals.degraded,
            capacity: space.iter().map(|s| s.0).sum(),
            used: space.iter().map(|s| s.1).sum(),
            provisioned: state.branches().values().map(|b| b.geometry.size).sum(),
            resync_left: totals.left,
            resync_rate: totals.rate,
        })
    }

    fn totals(&self, state: &MetaState, outlook: &Outlook) -> Totals {
        let mut t =
            Totals { fragile: state.branches().values().any(|b| b.class.copies == 1), ..Totals::default() };
        let suspects = state.suspects();
        let down: BTreeSet<DriveId> =
            state.drives().keys().filter(|d| state.drive_down(**d)).copied().collect();
        t.room = self.room_without(state, outlook, &down, &suspects);
        for branch in suspects {
            let survey = state.survey(branch);
            t.degraded += u32::from(survey.degraded > 0);
            t.unavailable += u32::from(survey.unavailable > 0);
            t.waiting += u32::from(survey.below_min > 0 && survey.unavailable == 0);
            t.fragile |= survey.fragile > 0;
            t.since = earlier(t.since, self.unwell_since(state, branch));
            let row = &state.branches()[&branch];
            if let Some(status) = self.session_status(branch, row) {
                t.left += status.resync_left;
                t.rate += status.resync_rate;
            }
        }
        t
    }

    #[expect(clippy::unused_self, reason = "a step of the view")]
    fn unwell_since(&self, state: &MetaState, branch: BranchId) -> Option<u64> {
        state.branches().get(&branch)?.unwell_since
    }

    #[expect(clippy::unused_self, reason = "a step of the view")]
    fn volume_checks(&self, t: &Totals, checks: &mut Vec<HealthCheck>) {
        let mut add = |n: u32, health, code: &str, text: String, action: &str| {
            if n > 0 {
                let (code, action) = (code.to_owned(), action.to_owned());
                checks.push(HealthCheck { health, code, text, since_ms: t.since, action });
            }
        };
        add(
            t.unavailable,
            Health::Err,
            "VOLUME_UNAVAILABLE",
            format!("{} volumes have data that no node that is up holds", t.unavailable),
            "start the nodes that are down",
        );
        add(
            t.waiting,
            Health::Err,
            "VOLUME_BELOW_MIN",
            format!("{} volumes have fewer replicas than min_in_sync: writes wait", t.waiting),
            "start the nodes that are down, or wait for resync",
        );
        let action = match (t.left, t.rate) {
            (0, _) => {
                t.room.promise("resync, or new replicas after down_out".to_owned(), "start what is down")
            }
            (left, 0) => format!("resync: {left} bytes left"),
            (left, rate) => format!("resync: {left} bytes left, {} s", left.div_ceil(rate)),
        };
        add(
            t.degraded,
            Health::Warn,
            "VOLUME_DEGRADED",
            format!("{} volumes have fewer replicas than they should", t.degraded),
            &action,
        );
    }

    fn node_checks(&self, state: &MetaState, outlook: &Outlook, checks: &mut Vec<HealthCheck>) {
        for (id, node) in state.nodes() {
            let Some((since, _)) = node.down else { continue };
            let left = (since + state.settings().down_out_ms).saturating_sub(self.wall_ms).div_ceil(1000);
            let drives = state.drives().iter().filter(|(_, d)| d.node == *id).map(|(d, _)| *d).collect();
            let room = self.room_for_all_on(state, outlook, &drives);
            let promise = match left {
                0 => "its replicas are placed anew".to_owned(),
                s => format!("its replicas are placed anew in {s} s unless it returns"),
            };
            let action = match (outlook.mass_failure, room.chunks) {
                (true, _) => "healing rests: more than a third of the nodes are down".to_owned(),
                (false, 0) => "nothing on it is missing elsewhere: start it, or remove it".to_owned(),
                _ => room.promise(promise, &format!("start {}", node.name)),
            };
            checks.push(HealthCheck {
                health: Health::Warn,
                code: "NODE_DOWN".into(),
                text: format!("node {} is down", node.name),
                since_ms: Some(since),
                action,
            });
        }
    }

    fn drive_checks(&self, state: &MetaState, outlook: &Outlook, checks: &mut Vec<HealthCheck>) {
        for (id, drive) in state.drives() {
            let name = format!("drive {id} on {}", state.node_name(drive.node));
            let (capacity, used) = self.space(state, *id);
            let full = used.saturating_mul(100) >= capacity.saturating_mul(state.settings().full_percent);
            let found = if drive.stranger {
                Some((
                    Health::Err,
                    "DRIVE_STRANGER",
                    "was rolled back or copied",
                    format!("it serves nobody: blockctl drive drain {id}, then format it anew"),
                ))
            } else if drive.down.is_some() {
                Some((
                    Health::Warn,
                    "DRIVE_DOWN",
                    "has failed",
                    self.room_for_all_on(state, outlook, &BTreeSet::from([*id]))
                        .promise("its replicas are placed anew after down_out".to_owned(), "mend it"),
                ))
            } else if full {
                let action = "it takes no new replicas: add drives".to_owned();
                Some((Health::Warn, "DRIVE_FULL", "is full", action))
            } else {
                None
            };
            if let Some((health, code, what, action)) = found {
                checks.push(HealthCheck {
                    health,
                    code: code.into(),
                    text: format!("{name} {what}"),
                    since_ms: drive.down,
                    action,
                });
            }
        }
    }
}

fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
