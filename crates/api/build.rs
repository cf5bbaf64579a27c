//! Compiles the .proto files without `protoc`: protox reads them, tonic-prost-build writes the Rust.

use std::error::Error;

const FILES: &[&str] = &[
    "blockd/error.proto",
    "blockd/node.proto",
    "blockd/cluster.proto",
    "blockd/raft.proto",
    "blockd/admin.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true);
    for file in FILES {
        compiler.open_file(file)?;
    }
    tonic_prost_build::configure().build_transport(true).compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
