//! The code of the notebook `indirect_object.ipynb`, cell by cell, as a program: `make.py` beside it makes the notebook of both.
//!
//! Prints what the cells show, in evcxr's convention: `cargo run --example notebook --features view`.

use tch_lens::Result;

fn main() -> Result<()> {
    // %% [markdown]
    // # Who gets the bag?
    //
    // How does a small model know the indirect object of a sentence? This notebook looks at its predictions, its attention, the parts that
    // write the answer, the places that decide it, and the circuit. The [book](../../docs/SUMMARY.md) explains each technique, and what not
    // to conclude from it.
    //
    // The first cell compiles the crate, which takes some minutes. Cells show pictures where they end with `evcxr_display()`.

    // %%
    use tch_lens::circuits::{Ablation, CircuitTask, EdgeMethod};
    use tch_lens::view::{AttentionPatterns, Draw, ScoredCircuit};
    use tch_lens::{patching, HeadOptions, HookedTransformer, LensOptions, Metric};

    // %% [markdown]
    // The toy model is part of the crate. The answer is the name that occurs once.

    // %%
    let model = HookedTransformer::toy()?;
    let clean = "When Mary and John went to the shop, John gave a bag to";
    let corrupted = "When Mary and John went to the shop, Mary gave a bag to";
    model.test_prompt(clean, ["Mary", "John"])?.evcxr_display();

    // %% [markdown]
    // What would the model say if it ended after each layer?

    // %%
    let (_, cache) = model.run_with_cache(clean)?;
    cache.logit_lens(LensOptions::new())?.evcxr_display();

    // %% [markdown]
    // What does each head look at? Move the pointer over a pattern, or use Tab and the arrows.

    // %%
    AttentionPatterns::of(&cache, 0)?.evcxr_display();

    // %% [markdown]
    // Which heads write the difference between the two names?

    // %%
    cache.logit_attrs(HeadOptions::new().pos(-1).batch(0), (" Mary", " John"))?.evcxr_display();

    // %% [markdown]
    // Where is the answer decided? The streams of this run, one at a time, in the run of the other prompt.

    // %%
    let metric = Metric::logit_diff(" Mary", " John");
    patching::get_act_patch_resid_pre(&model, corrupted, &cache, &metric)?.evcxr_display();

    // %% [markdown]
    // Which edges between heads and MLPs do it? The forty most important ones.

    // %%
    {
        // A block, as a notebook keeps no variable that borrows another.
        let task = CircuitTask::new(&model, clean, Ablation::counterfactual(corrupted), &metric)?;
        let scores = task.edge_scores(EdgeMethod::IntegratedInputs { steps: 5 })?;
        let circuit = scores.top_n(40)?.pruned();
        ScoredCircuit { circuit: &circuit, scores: &scores }.evcxr_display();
    }

    // %% end
    Ok(())
}
