//! Views: functions of the state and of what nodes said last.

use crate::admin::{AdminAnswer, AdminRequest};
use crate::refusal::AdminRefusal;
use crate::service::Service;
use crate::state::MetaState;

impl Service {
    pub(crate) fn read(&self, state: &MetaState, request: AdminRequest) -> Result<AdminAnswer, AdminRefusal> {
        let _ = (state, request);
        Ok(AdminAnswer::Done)
    }
}
