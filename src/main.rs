//! The `roamd` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    roamd::main()
}
