//! Python opens the files, where there is one with pyarrow and safetensors; `HARVEST_PYTHON` names another than `python3`.

mod support;

use std::process::Command;

use support::{documents, job, lines, plan, Outcome, NEURONS, POINT};
use tch_lens_harvest::{harvest, DType, Format, PlanOptions};

#[test]
fn python_opens_both_formats() -> Outcome {
    let python = std::env::var("HARVEST_PYTHON").unwrap_or("python3".into());
    let has_both = Command::new(&python).args(["-c", "import numpy, pyarrow, safetensors"]).output();
    if !has_both.is_ok_and(|output| output.status.success()) {
        println!("skipped: `{python}` has no numpy, pyarrow and safetensors (pip install numpy pyarrow safetensors)");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let corpus = lines(folder.path(), &documents(40));
    // `hook_resid_pre` of the next layer is the same stream.
    let options = PlanOptions::new("toy")
        .point(POINT, DType::Fp32)
        .point(NEURONS, DType::Fp16)
        .point("blocks.2.hook_resid_pre", DType::Bf16)
        .top_k(NEURONS, DType::Fp32, 3)
        .formats([Format::Parquet, Format::Safetensors])
        .shard_tokens(400);
    let harvested = folder.path().join("harvest");
    let job = job(&plan(options, &corpus)?, &harvested)?;
    let metadata = harvest(&job, job.manifest().shards(), |_| ())?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python.py");
    let output = Command::new(&python).arg(script).arg(&harvested).output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let activations: u64 = metadata.iter().map(|metadata| metadata.activations).sum();
    assert_eq!(String::from_utf8(output.stdout)?.trim(), activations.to_string());
    Ok(())
}
