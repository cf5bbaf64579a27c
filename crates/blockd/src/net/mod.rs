//! Sockets of the data plane: streams with one receive and one send in flight each, and the links between nodes.

mod links;
mod stream;

pub use links::Links;
pub use stream::Stream;

/// What is under way on a stream, for the tag of its operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    Connect,
    Receive,
    Send,
}
