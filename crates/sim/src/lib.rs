//! The simulator: whole clusters in one process, in virtual time, from one seed.
//!
//! Many real nodes (`node::Node`), real metadata (`meta`), drives and a network that do what drives and networks may do,
//! guests that ask, faults that strike, and properties that are checked all the while. The same seed gives the same run,
//! everywhere. See `docs/testing.md`.
#![forbid(unsafe_code)]

pub mod atlas;
pub mod bugs;
pub mod counts;
mod disk;
mod driver;
mod effects;
mod errands;
mod faults;
mod guest;
mod host;
mod layout;
mod lineage;
mod making;
mod metad;
mod net;
mod operator;
mod process;
mod properties;
mod queue;
mod readers;
mod rng;
pub mod run;
mod swarm;
mod trace;
mod words;
mod world;

pub use bugs::Bugs;
pub use counts::Counts;
pub use run::{Options, Outcome, run};
pub use swarm::Swarm;
pub use world::Failure;
