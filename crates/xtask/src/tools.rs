//! Real clients that the end-to-end checks use when they are there.

use std::process::{Command, Stdio};

/// (command, Debian package)
pub const CLIENTS: &[(&str, &str)] = &[
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("qemu-storage-daemon", "qemu-utils"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("fio", "fio"),
];

pub fn have(command: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|p| std::env::split_paths(&p).any(|d| d.join(command).is_file()))
}

fn quiet(c: &mut Command) -> bool {
    c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// Installs what is missing where it may (root on a Debian). Returns what is still missing, and how to get it.
pub fn install_clients() -> Option<String> {
    let missing = || {
        let mut packages: Vec<&str> = CLIENTS.iter().filter(|(c, _)| !have(c)).map(|(_, p)| *p).collect();
        packages.dedup();
        packages
    };
    let packages = missing();
    if packages.is_empty() {
        return None;
    }
    let root =
        std::process::Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.starts_with(b"0\n"));
    if root && have("apt-get") {
        eprintln!("installing {}", packages.join(" "));
        let apt = |args: &[&str]| {
            quiet(Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive"))
        };
        apt(&["update", "-q"]);
        let mut args = vec!["install", "-q", "-y", "--no-install-recommends"];
        args.extend(&packages);
        apt(&args);
    }
    let left = missing();
    (!left.is_empty()).then(|| format!("apt-get install {}", left.join(" ")))
}
