//! Tests that need a process of their own.
//!
//! The child is this same binary, told to run one test. The test asks [`argument`] whether it is the child, and then runs
//! its body. A binary that finds no test of that name succeeds as well, so the child must prove that it ran: [`run`] panics
//! where it did not.

use std::process::Command;

const ARGUMENT: &str = "TCH_LENS_CHILD";
const BEGUN: &str = "the child has begun";

/// What the parent passed to this process; `None` in the parent.
pub fn argument() -> Option<String> {
    let argument = std::env::var(ARGUMENT).ok()?;
    println!("{BEGUN}");
    Some(argument)
}

/// Runs the test `name` (`module::function`) in a child process, whose environment `change` may alter. Gives what the child
/// printed, as `Err` where the test failed.
///
/// # Panics
///
/// Where the child did not run the test.
#[track_caller]
pub fn run(name: &str, argument: &str, change: impl FnOnce(&mut Command)) -> Result<String, String> {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(ARGUMENT, argument);
    change(&mut child);
    let output = child.output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let text = format!("{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains(BEGUN), "the child did not run {name}: {}\n{text}", output.status);
    if output.status.success() {
        Ok(text)
    } else {
        Err(text)
    }
}
