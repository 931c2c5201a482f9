//! What a new user meets first, as a crate of one's own meets it: `.ci/own-crate` runs this from the packaged crate.
//! Last, the program ends with an error that `main` returns.

use tch_lens::tch::nn::{self, OptimizerConfig};
use tch_lens::{
    hook, Config, FullOptions, HookedTransformer, Hooks, LensOptions, LoadOptions, Result, ReturnType, RunOptions,
    Tokenizer,
};

const PROMPT: &str = "When Mary and John went to the shop, John gave a bag to";

fn main() -> Result<()> {
    let model = HookedTransformer::toy()?;
    texts(&model)?;
    runs(&model)?;
    training()?;
    saved(&model)?;
    // The hub is a feature of its own, and this crate does not ask for it.
    let error = HookedTransformer::from_pretrained("gpt2-small").unwrap_err().to_string();
    assert!(error.contains("need the feature `hub`") && !error.contains('\n'), "{error}");
    let hooks = Hooks::new().observe(hook::z(1), |z, _| assert!(z.size()[2] > 9, "there is no head 9"));
    model.run_with_hooks(PROMPT, hooks)?;
    unreachable!("a panic in a hook is an error")
}

/// What is printed is an answer, and a word that the tokenizer does not know is an error.
fn texts(model: &HookedTransformer) -> Result<()> {
    for id in 0..model.config().d_vocab as i64 {
        let printed = model.to_single_str_token(id)?;
        assert_eq!(model.to_single_token(&printed)?, id, "{printed:?}");
    }
    let unknown = model.to_tokens("Ж 漢").unwrap_err().to_string();
    assert!(unknown.contains("allow_unknown"), "{unknown}");
    Ok(())
}

/// A layer is any integer; a loss with hooks is one call; averages, lenses over positions and tables are there.
fn runs(model: &HookedTransformer) -> Result<()> {
    let n_layers = model.config().n_layers;
    assert_eq!(hook::z(0usize), hook::z(0i64));
    let half = Hooks::new().edit(hook::z(-1), |z, _| drop(z.g_mul_scalar_(0.5)));
    assert!(model.loss_with_hooks(PROMPT, half)? != model.loss(PROMPT)?);

    let (_, cache) = model.run_with_cache([PROMPT, PROMPT])?;
    assert!(cache.get(hook::z(n_layers - 1))? == cache.get(hook::z(-1))?);
    let attrs = cache.logit_attrs(FullOptions::new().pos(-1), " Mary")?;
    let mean = attrs.mean_batch()?;
    assert!(mean.residual_error()? < 1e-3);
    let lens = cache.logit_lens(LensOptions::new().pos(-3..))?;
    for printed in [lens.to_string(), attrs.to_string(), mean.to_string()] {
        assert!(printed.lines().all(|line| line.chars().count() <= 80), "{printed}");
    }
    Ok(())
}

/// A configuration from its sizes, whose parameters an optimiser of `tch::nn` takes.
fn training() -> Result<()> {
    let config = Config::new(1, 16, 2, 20, 8);
    assert_eq!((config.d_head, config.d_vocab_out, config.n_key_value_heads), (8, 20, 2));
    let model = HookedTransformer::init(config, 0)?;
    let mut variables = model.var_store()?;
    let mut optimizer = nn::AdamW::default().build(&variables, 1e-2)?;
    let tokens = [3, 1, 4, 1, 5];
    let before = model.loss(tokens)?;
    for _ in 0..5 {
        let loss = model.run(tokens, RunOptions::new().return_type(ReturnType::Loss))?.loss.expect("it was asked for");
        optimizer.backward_step(&loss);
    }
    variables.freeze();
    assert!(model.loss(tokens)? < before);
    Ok(())
}

/// Special tokens whose text a normaliser changes come back with their ids.
fn saved(model: &HookedTransformer) -> Result<()> {
    let special = |id: u32, content: &str| {
        format!(
            r#"{{ "id": {id}, "content": "{content}", "special": true, "single_word": false, "lstrip": false, "rstrip": false,
                 "normalized": true }}"#
        )
    };
    let json = format!(
        r#"{{ "version": "1.0", "added_tokens": [{}, {}, {}], "pre_tokenizer": null, "post_processor": null, "decoder": null,
             "normalizer": {{ "type": "Prepend", "prepend": "▁" }},
             "model": {{ "type": "WordLevel", "unk_token": "<unk>",
                         "vocab": {{ "<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3, "▁the": 4 }} }} }}"#,
        special(0, "<s>"),
        special(1, "</s>"),
        special(2, "<pad>")
    );
    let names = br#"{ "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>" }"#;
    let model = model.clone().with_tokenizer(Tokenizer::from_bytes(json.as_bytes(), Some(names))?);
    let ids = |model: &HookedTransformer| -> Result<_> {
        let tokenizer = model.tokenizer()?;
        Ok((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()))
    };
    assert_eq!(ids(&model)?, (Some(0), Some(1), 2));
    let folder = std::env::temp_dir().join(format!("stumbles-{}", std::process::id()));
    model.save_pretrained(&folder)?;
    let again = LoadOptions::new().open(&folder)?;
    std::fs::remove_dir_all(&folder).expect("what was just written");
    assert_eq!(ids(&again)?, ids(&model)?);
    Ok(())
}
