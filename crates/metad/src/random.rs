//! Ids that nobody guesses and nobody has: from the kernel.

use std::fs::File;
use std::io::{self, Read};
use tonic::Status;

pub fn u128() -> io::Result<u128> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u128::from_be_bytes(bytes))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub fn status(e: io::Error) -> Status {
    Status::internal(format!("/dev/urandom: {e}"))
}
