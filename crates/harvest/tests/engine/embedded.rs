//! DataFusion in this process makes the same shards.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use tch_lens_harvest::engine::harvest_embedded;
use tch_lens_harvest::{harvest, Error, ShardId};

use crate::support::{assert_equal, documents, job, lines, options, plan, Outcome};

#[test]
fn the_engine_makes_the_same_bytes() -> Outcome {
    let folder = tempfile::tempdir()?;
    let manifest = plan(options(), &lines(folder.path(), &documents(60)))?;
    let alone = job(&manifest, &folder.path().join("alone"))?;
    let expected = harvest(&alone, manifest.shards(), |_| ())?;
    for parallel in [1, 3] {
        let place = folder.path().join(format!("engine{parallel}"));
        let shown = Arc::new(AtomicUsize::new(0));
        let count = shown.clone();
        let engine = job(&manifest, &place)?;
        let found = harvest_embedded(&engine, manifest.shards(), parallel, move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        })?;
        assert_eq!(found, expected);
        assert_eq!(shown.load(Ordering::Relaxed), expected.len());
        assert_equal(&place, &folder.path().join("alone"));
        // Again: all is there.
        assert_eq!(harvest_embedded(&engine, manifest.shards(), parallel, |_| ())?, expected);
    }
    Ok(())
}

#[test]
fn errors_come_back_as_they_are() -> Outcome {
    let folder = tempfile::tempdir()?;
    let corpus = lines(folder.path(), &documents(30));
    let manifest = plan(options(), &corpus)?;
    let job = job(&manifest, &folder.path().join("harvest"))?;
    let error = harvest_embedded(&job, [ShardId(99)], 1, |_| ()).unwrap_err();
    assert!(matches!(error, Error::NoSuchShard { shard: ShardId(99), .. }), "{error}");
    let text = std::fs::read_to_string(&corpus)?;
    std::fs::write(&corpus, text.replacen("France", "Frence", 1000))?;
    let error = harvest_embedded(&job, manifest.shards(), 2, |_| ()).unwrap_err();
    assert!(matches!(error, Error::CorpusChanged { .. }), "{error}");
    assert_eq!(harvest_embedded(&job, [], 1, |_| ())?, []);
    Ok(())
}
