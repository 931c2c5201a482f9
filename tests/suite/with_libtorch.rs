//! `./with-libtorch`, run in made-up surroundings: a clone, a PATH and a cache of its own, and no network.

use rstest::rstest;
use std::env::consts::DLL_EXTENSION;
use std::fs;
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// What the script may use besides Python.
const TOOLS: &[&str] = &[
    "sh", "awk", "cat", "cut", "df", "dirname", "env", "find", "getconf", "grep", "mkdir", "mktemp", "mv", "rm", "sed",
    "sleep", "sw_vers", "tail", "touch", "tr", "uname",
];

/// A `python3` without torch, whose pip is the shell code `DOWNLOAD`, with the folder to download to in `$dest`.
const PYTHON: &str = r#"
case "$*" in
    '-m pip --version') ;;
    '-m pip download '*)
        while [ "$1" != --dest ]; do shift; done
        dest=$2
        DOWNLOAD ;;
    '-c '*) exec REAL_PYTHON "$@" ;;
    *) exit 1 ;;
esac
"#;

struct Surroundings(TempDir);

impl Surroundings {
    fn new() -> Self {
        let surroundings = Self(tempfile::tempdir().unwrap());
        for folder in ["clone", "bin", "elsewhere"] {
            fs::create_dir(surroundings.path(folder)).unwrap();
        }
        for file in ["with-libtorch", "Cargo.lock"] {
            let original = crate::common::repository().join(file);
            fs::copy(original, surroundings.path("clone").join(file)).unwrap();
        }
        for tool in TOOLS {
            if let Some(path) = real(tool) {
                symlink(path, surroundings.path("bin").join(tool)).unwrap();
            }
        }
        surroundings
    }

    /// With a `python3` whose pip does `download`.
    fn with_pip(download: &str) -> Self {
        let surroundings = Self::new();
        let python = real("python3").unwrap_or_else(|| "false".into());
        let stub = PYTHON.replace("REAL_PYTHON", python.to_str().unwrap());
        surroundings.stub("python3", &stub.replace("DOWNLOAD", download));
        surroundings
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn stub(&self, name: &str, code: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{code}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A folder that looks like a libtorch of this version.
    fn libtorch(&self, folder: &Path, version: &str) {
        let header = folder.join("include/torch/headeronly/version.h");
        fs::create_dir_all(folder.join("lib")).unwrap();
        fs::create_dir_all(header.parent().unwrap()).unwrap();
        fs::write(folder.join(format!("lib/libtorch_cpu.{DLL_EXTENSION}")), "").unwrap();
        let lines = ["MAJOR", "MINOR", "PATCH"].into_iter().zip(version.split('.'));
        let lines = lines.map(|(part, value)| format!("#define TORCH_VERSION_{part} {value}\n"));
        fs::write(header, lines.collect::<String>()).unwrap();
    }

    /// Where the script keeps what it has fetched.
    fn cached(&self) -> PathBuf {
        let system = if cfg!(target_os = "macos") { "macos" } else { "linux" };
        let machine = Command::new("uname").arg("-m").output().unwrap().stdout;
        let machine = String::from_utf8(machine).unwrap();
        self.path("cache/tch-lens").join(format!("libtorch-2.13.0-cpu-{system}-{}", machine.trim()))
    }

    /// What lies in the cache.
    fn in_cache(&self) -> Vec<PathBuf> {
        match fs::read_dir(self.path("cache/tch-lens")) {
            Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
            Err(_) => Vec::new(),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.path("clone/with-libtorch"));
        command
            .args(args)
            .current_dir(self.path("elsewhere"))
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("HOME", self.0.path())
            .env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn config(&self) -> String {
        fs::read_to_string(self.path("clone/.cargo/config.toml")).unwrap_or_default()
    }
}

/// The path of a program of this machine.
fn real(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.exists())?;
    // A version manager's python3 is a script that looks for the rest of itself in PATH.
    if program != "python3" {
        return Some(found);
    }
    let asked = Command::new(found).args(["-c", "import sys; print(sys.executable)"]).output().ok()?;
    Some(String::from_utf8(asked.stdout).ok()?.trim().into())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One line on stderr that says all of `parts`, after the line that a fetch begins with; nothing on stdout.
#[track_caller]
fn assert_one_sentence(output: &Output, code: i32, parts: &[&str]) {
    let stderr = text(&output.stderr);
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.contains(": fetching ")).collect();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(lines.len(), 1, "{stderr}");
    for part in parts {
        assert!(lines[0].contains(part), "no {part:?} in: {stderr}");
    }
    assert_eq!(text(&output.stdout), "");
}

#[rstest]
#[case(&[])]
#[case(&["--help"])]
fn no_command_is_answered_with_the_usage(#[case] args: &[&str]) {
    assert_one_sentence(&Surroundings::new().run(args), 2, &["usage: with-libtorch COMMAND"]);
}

#[test]
fn the_command_gets_libtorch_and_its_own_folder_and_its_exit_code_is_passed_on() {
    let here = Surroundings::new();
    here.libtorch(&here.path("mine"), "2.13.0");
    let output = here
        .command(&["sh", "-c", "echo $LIBTORCH; pwd -P; exit 42"])
        .env("LIBTORCH", "../mine") // from where the user stands; a build script stands elsewhere
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(42));
    let stdout = text(&output.stdout);
    let lines: Vec<_> = stdout.lines().map(|line| fs::canonicalize(line).unwrap()).collect();
    let expected = ["mine", "elsewhere"].map(|name| fs::canonicalize(here.path(name)).unwrap());
    assert_eq!(lines, expected);
    assert!(stdout.starts_with('/'));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_command_that_does_not_exist_is_not_a_success() {
    let here = Surroundings::new();
    here.libtorch(&here.cached(), "2.13.0");
    assert_eq!(here.run(&["no-such-command"]).status.code(), Some(127));
}

#[test]
fn a_libtorch_that_is_none_is_named() {
    let here = Surroundings::new();
    let output = here.command(&["true"]).env("LIBTORCH", here.path("elsewhere")).output().unwrap();
    assert_one_sentence(&output, 1, &["elsewhere is no libtorch", "unset it"]);
}

#[test]
fn a_libtorch_of_another_version_is_refused_unless_the_check_is_bypassed() {
    let here = Surroundings::new();
    here.libtorch(&here.path("old"), "2.9.1");
    let mut command = here.command(&["sh", "-c", "exit 0"]);
    command.env("LIBTORCH", here.path("old"));
    assert_one_sentence(&command.output().unwrap(), 1, &["is libtorch 2.9.1, but tch 0.", "takes 2.13.0"]);
    command.env("LIBTORCH_BYPASS_VERSION_CHECK", "1");
    assert_eq!(command.output().unwrap().status.code(), Some(0));
}

#[test]
fn without_python_the_sentence_names_it() {
    let here = Surroundings::new();
    assert_one_sentence(&here.run(&["true"]), 1, &["python3", "install", "LIBTORCH"]);
    assert_eq!(here.in_cache(), [] as [PathBuf; 0]);
}

#[test]
fn without_pip_the_sentence_names_it() {
    let here = Surroundings::new();
    here.stub("python3", "exit 1");
    assert_one_sentence(&here.run(&["true"]), 1, &["python3 has no pip", "install it"]);
    assert_eq!(here.in_cache(), [] as [PathBuf; 0]);
}

#[rstest]
#[case::offline(
    "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...)'\n\
     ERROR: No matching distribution found for torch==2.13.0",
    "connect to the network"
)]
#[case::no_wheel("ERROR: No matching distribution found for torch==2.13.0", "PyPI has no wheel of torch 2.13.0")]
#[case::disk_full("ERROR: Could not install: [Errno 28] No space left on device", "free about 1.6 GB")]
#[case::anything("ERROR: the sky fell", "the sky fell")]
fn a_download_that_fails_says_what_to_do_and_leaves_nothing(#[case] errors: &str, #[case] says: &str) {
    let here = Surroundings::with_pip("printf '%s\\n' \"$PIP_SAYS\" >&2; echo x >\"$dest/torch.whl\"; exit 1");
    let output = here.command(&["true"]).env("PIP_SAYS", errors).output().unwrap();
    assert_one_sentence(&output, 1, &[says]);
    assert_eq!(here.in_cache(), [] as [PathBuf; 0]);
}

#[test]
fn a_full_disk_is_seen_before_anything_is_fetched() {
    let here = Surroundings::with_pip("exit 1");
    fs::remove_file(here.path("bin/df")).unwrap();
    here.stub("df", "printf 'Filesystem 1024-blocks Used Available Capacity Mounted\\nx 9 9 99999 9%% /\\n'");
    assert_one_sentence(&here.run(&["true"]), 1, &["the disk is too full", "free about 1.6 GB"]);
}

#[test]
fn an_interrupted_download_leaves_nothing() {
    let here =
        Surroundings::with_pip("echo half >\"$dest/torch.whl\"; echo started >\"$HOME/started\"; exec sleep 600");
    let started = Command::new("mkfifo").arg(here.path("started")).status().unwrap();
    assert!(started.success());
    let child = here.command(&["true"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(fs::read_to_string(here.path("started")).unwrap(), "started\n"); // waits until pip runs
    assert_eq!(here.in_cache().len(), 1, "the half of a wheel is kept elsewhere");
    let killed = Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_one_sentence(&child.wait_with_output().unwrap(), 143, &["interrupted"]);
    assert_eq!(here.in_cache(), [] as [PathBuf; 0]);
}

/// Makes wheels like PyPI's, with an empty file for each of theirs that matters.
const WHEELS: &str = r#"sleep 0.5; exec REAL_PYTHON -c '
import sys, zipfile
for wheel, files in {
    "torch": "torch/__init__.py torch/lib/libtorch.so torch/lib/libtorch_cpu.so torch/lib/libtorch_cpu.dylib "
        "torch/lib/libtorch_cuda.so torch/lib/libtorch_python.so torch/lib/libgomp.so.1 torch/lib/libarm_compute.so "
        "torch/lib/x/libdeep.so torch/include/torch/script.h torch/include/c10/cuda/CUDAStream.h "
        "torch/include/../../../../escaped.h",
    "cupti": "nvidia/cu13/lib/libcupti.so.13 nvidia/cu13/lib/libnvperf_host.so",
    "cudart": "nvidia/cu13/lib/libcudart.so.13 nvidia/cu13/include/cuda.h",
}.items():
    with zipfile.ZipFile(f"{sys.argv[1]}/{wheel}.whl", "w") as archive:
        for file in files.split():
            archive.writestr(file, "")
' "$dest""#;

#[test]
fn what_the_cpu_needs_is_unpacked_once_also_when_two_ask_at_once() {
    if real("python3").is_none() {
        return; // nothing here can unpack a wheel
    }
    let python = real("python3").unwrap();
    let here = Surroundings::with_pip(&WHEELS.replace("REAL_PYTHON", python.to_str().unwrap()));
    let spawn = || {
        let mut command = here.command(&["sh", "-c", "exit 5"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for child in [spawn(), spawn()] {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "");
    }
    assert_eq!(here.in_cache(), [here.cached()]);

    let listed = Command::new("find").args([".", "!", "-type", "d"]).current_dir(here.cached()).output().unwrap();
    let listed = text(&listed.stdout);
    let mut listed: Vec<_> = listed.lines().filter(|file| !file.ends_with("escaped.h")).collect();
    listed.sort_unstable();
    let expected = [
        "./build-version",
        "./include/c10/cuda/CUDAStream.h",
        "./include/torch/script.h",
        "./lib/libarm_compute.so",
        "./lib/libcudart.so.13",
        "./lib/libcupti.so.13",
        "./lib/libgomp.so.1",
        "./lib/libtorch.so",
        "./lib/libtorch_cpu.dylib",
        "./lib/libtorch_cpu.so",
    ];
    assert_eq!(listed, expected);
    assert_eq!(fs::read_link(here.cached().join("lib/libtorch.so")).unwrap(), Path::new("libtorch_cpu.so"));
    assert!(!here.path("cache/escaped.h").exists() && !here.path("escaped.h").exists());

    here.stub("python3", "touch \"$HOME/asked\"; exit 1"); // from now on, offline
    assert_eq!(here.run(&["sh", "-c", "exit 6"]).status.code(), Some(6));
}

#[test]
fn what_is_cached_is_taken_without_pip() {
    let here = Surroundings::with_pip("touch \"$HOME/downloaded\"");
    here.libtorch(&here.cached(), "2.13.0");
    let output = here.run(&["sh", "-c", "echo $LIBTORCH"]);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(Path::new(text(&output.stdout).trim()), here.cached());
    assert!(!here.path("downloaded").exists());
}

#[test]
fn a_cached_folder_that_is_not_whole_is_named() {
    let here = Surroundings::new();
    fs::create_dir_all(here.cached()).unwrap();
    assert_one_sentence(&here.run(&["true"]), 1, &["is not whole: remove it"]);
}

#[rstest]
#[case("2.13.1", true)]
#[case("2.12.0", false)]
fn the_active_python_s_torch_is_taken_if_its_version_fits(#[case] version: &str, #[case] taken: bool) {
    let here = Surroundings::new();
    here.libtorch(&here.cached(), "2.13.0");
    here.libtorch(&here.path("torch"), version);
    here.stub("python3", "echo \"$HOME/torch\"");
    let output = here.run(&["sh", "-c", "echo $LIBTORCH"]);
    let expected = if taken { here.path("torch") } else { here.cached() };
    assert_eq!(Path::new(text(&output.stdout).trim()), expected);
}

#[test]
fn libtorch_use_pytorch_needs_a_torch() {
    let here = Surroundings::new();
    here.stub("python3", "exit 1");
    let mut command = here.command(&["sh", "-c", "echo ${LIBTORCH-unset}"]);
    command.env("LIBTORCH_USE_PYTORCH", "1");
    assert_one_sentence(&command.output().unwrap(), 1, &["LIBTORCH_USE_PYTORCH", "install torch==2.13.0"]);
    here.stub("python3", "echo /somewhere/torch");
    assert_eq!(text(&command.output().unwrap().stdout), "unset\n"); // torch-sys asks Python itself
    assert!(here.config().contains("\nLIBTORCH_USE_PYTORCH = { value = \"1\", force = false }"));
}

#[test]
fn plain_cargo_finds_it_from_then_on() {
    let here = Surroundings::new();
    here.libtorch(&here.cached(), "2.13.0");
    here.run(&["true"]);
    let line = format!("\nLIBTORCH = {{ value = {:?}, force = false }}\n", here.cached());
    assert!(here.config().starts_with("# Written by with-libtorch"), "{}", here.config());
    assert!(here.config().contains("\n[env]\n") && here.config().contains(&line), "{}", here.config());

    let file = here.path("clone/.cargo/config.toml");
    let written = fs::metadata(&file).unwrap().ino(); // a file that is written again is another one
    here.run(&["true"]);
    assert_eq!(fs::metadata(&file).unwrap().ino(), written, "nothing had changed");

    here.libtorch(&here.path("other \"one\""), "2.13.0");
    here.command(&["true"]).env("LIBTORCH", here.path("other \"one\"")).output().unwrap();
    assert!(here.config().contains("/other \\\"one\\\"\", force"), "{}", here.config());
}

/// The script in the package that cargo unpacked serves the crate that it is run in, from any folder of it.
#[test]
fn a_crate_that_depends_on_the_package_is_set_up() {
    let here = Surroundings::new();
    let libtorch =
        here.cached().with_file_name(here.cached().file_name().unwrap().to_str().unwrap().replace("2.13", "2.12"));
    here.libtorch(&libtorch, "2.12.0");
    fs::create_dir_all(here.path("own/src")).unwrap();
    fs::write(here.path("own/Cargo.lock"), "[[package]]\nname = \"tch\"\nversion = \"0.25.3\"\n").unwrap();
    let output = here.command(&["sh", "-c", "echo $LIBTORCH"]).current_dir(here.path("own/src")).output().unwrap();
    assert_eq!(text(&output.stdout).trim(), libtorch.to_str().unwrap(), "{}", text(&output.stderr));
    let config = fs::read_to_string(here.path("own/.cargo/config.toml")).unwrap();
    assert!(config.contains(&format!("\nLIBTORCH = {{ value = {libtorch:?}, force = false }}\n")), "{config}");
    assert_eq!(here.config(), "", "the package's own folder is left alone");
}

#[test]
fn a_cargo_configuration_of_the_user_s_own_is_left_alone() {
    let here = Surroundings::new();
    here.libtorch(&here.cached(), "2.13.0");
    let own = "[build]\njobs = 1\n";
    fs::create_dir(here.path("clone/.cargo")).unwrap();
    fs::write(here.path("clone/.cargo/config.toml"), own).unwrap();
    let output = here.run(&["sh", "-c", "exit 0"]);
    assert_one_sentence(&output, 0, &["is your own and was left alone"]);
    assert_eq!(here.config(), own);
}
