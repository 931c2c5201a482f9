//! Progress, one line a shard.

use std::time::Duration;

use tch_lens_harvest::Progress;

pub(super) fn print(progress: &Progress) {
    let remaining = progress.remaining.map_or(String::new(), |remaining| format!(", {} left", time(remaining)));
    eprintln!(
        "{}/{} shards, {} tokens at {:.0} tokens/s, {} written{remaining}",
        progress.shards_done,
        progress.shards,
        progress.tokens,
        progress.rate(),
        bytes(progress.bytes),
    );
}

fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

pub(super) fn bytes(bytes: u64) -> String {
    let (mut size, mut unit) = (bytes as f64, "bytes");
    for larger in ["kB", "MB", "GB", "TB", "PB"] {
        if size < 1000.0 {
            break;
        }
        (size, unit) = (size / 1000.0, larger);
    }
    if unit == "bytes" {
        format!("{bytes} bytes")
    } else {
        format!("{size:.1} {unit}")
    }
}
