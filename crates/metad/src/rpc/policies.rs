//! Policies: between protobuf and `meta`.

use api::v1;
use meta::AdminRequest;
use meta::model::Quota;
use meta::view::{PolicyView, PolicyVolume};
use schedule::Retention;

pub fn create(r: v1::CreatePolicyRequest) -> AdminRequest {
    let k = r.retention.unwrap_or_default();
    let retention = Retention {
        last: k.last,
        hourly: k.hourly,
        daily: k.daily,
        weekly: k.weekly,
        monthly: k.monthly,
        yearly: k.yearly,
    };
    AdminRequest::PolicyCreate { name: r.name, schedules: r.schedules, jitter_ms: r.jitter_ms, retention }
}

pub fn attach(r: v1::AttachPolicyRequest) -> AdminRequest {
    let (name, volume) = (r.name, r.volume);
    if r.detach {
        AdminRequest::PolicyDetach { name, volume }
    } else {
        AdminRequest::PolicyAttach { name, volume }
    }
}

pub fn quota(r: v1::SetQuotaRequest) -> AdminRequest {
    let quota = r.snapshots.map(|most| Quota { most, manual_only: r.manual_only });
    AdminRequest::VolumeQuota { name: r.name, quota }
}

pub fn policy(v: PolicyView) -> v1::Policy {
    let k = v.retention;
    let volume = |v: PolicyVolume| v1::PolicyVolume {
        name: v.name,
        ran_ms: v.ran_ms,
        next_ms: v.next_ms,
        late: v.late,
    };
    v1::Policy {
        name: v.name,
        schedules: v.schedules,
        jitter_ms: v.jitter_ms,
        retention: Some(v1::Retention {
            last: k.last,
            hourly: k.hourly,
            daily: k.daily,
            weekly: k.weekly,
            monthly: k.monthly,
            yearly: k.yearly,
        }),
        keeps: v.keeps,
        created_ms: v.created_ms,
        volumes: v.volumes.into_iter().map(volume).collect(),
    }
}
