//! Files on the local disk that appear whole: they are written beside their place, synchronised and renamed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Put;

/// How the names of unfinished files end.
const PART: &str = ".part";

pub(super) fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = write_part(path, bytes)?;
    finish(fs::rename(&part, path), &part)
}

/// A hard link fails where the name is taken, so of several writers one succeeds.
pub(super) fn put_new(path: &Path, bytes: &[u8]) -> io::Result<Put> {
    if path.exists() {
        return Ok(Put::Exists);
    }
    let part = write_part(path, bytes)?;
    let linked = fs::hard_link(&part, path);
    let _ = fs::remove_file(&part);
    match linked {
        Ok(()) => Ok(Put::New),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Put::Exists),
        Err(error) => Err(error),
    }
}

/// Removes unfinished files of this path, which killed writers left. A writer that is still at work fails, and finds the shard committed.
pub(super) fn remove_leftovers(path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else { return };
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let found = entry.file_name();
        let Some(found) = found.to_str() else { continue };
        if found.strip_prefix('.').is_some_and(|rest| rest.starts_with(name)) && found.ends_with(PART) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn write_part(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let part = folder.join(format!(".{name}.{process}.{count}{PART}"));
    let written = File::create(&part).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    finish(written, &part)?;
    Ok(part)
}

/// Removes the unfinished file where something failed.
fn finish(result: io::Result<()>, part: &Path) -> io::Result<()> {
    if result.is_err() {
        let _ = fs::remove_file(part);
    }
    result
}
