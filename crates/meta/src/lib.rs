//! Who owns what: nodes, drives, volumes, branches, chunk configurations, sessions.
//!
//! Two machines. [`MetaState`] is the replicated state: `apply` is a function of the log and nothing
//! else. [`Service`] runs on every metad and acts on the leader: who is alive, what each node must be
//! told, and the planner, which proposes what is missing. The edge (`metad`, or the simulator) puts
//! commands into the log and carries messages; it decides nothing.
//!
//! Invariants of the state: no configuration with a number is without an in-sync member; numbers, epochs
//! and incarnations only rise; rows handed out as changes rebuild the very same state.
#![forbid(unsafe_code)]

pub mod admin;
pub mod answer;
pub mod bugs;
pub mod chunks;
mod clocks;
mod clone;
pub mod command;
mod dedup;
pub mod event;
mod fork;
mod forking;
mod garbage;
mod health;
mod index;
mod job;
mod keep;
mod liveness;
pub mod model;
pub mod name;
mod nodes;
pub mod placement;
mod planned;
mod planner;
pub mod policy;
pub mod refusal;
mod report;
mod requests;
mod resyncs;
mod room;
pub mod rows;
mod runs;
mod seal;
mod seals;
pub mod service;
mod session;
pub mod settings;
mod shrink;
mod snapshot;
mod space;
pub mod state;
mod survey;
mod touch;
mod trash;
pub mod view;
mod volume;
mod watch;

pub use admin::{AdminAnswer, AdminRequest};
pub use answer::{Answer, Outcome};
pub use bugs::Bugs;
pub use command::{Command, DecodeError, Op};
pub use model::{
    Branch, Class, Drive, Job, JobKind, JobState, Node, Phase, Seal, Session, Snapshot, SnapshotState, Volume,
};
pub use refusal::AdminRefusal;
pub use rows::{KeyChange, Row, Table};
pub use service::{Proposal, Service, ServiceEffect, ServiceEvent, Token};
pub use settings::{Setting, Settings};
pub use state::MetaState;
