//! `HookedEncoder` and `BertNextSentencePrediction`, and the heads that encoders have beside that for masked tokens, against transformers:
//! the folders of `tests/fixtures/encoder_heads`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::common::{fixtures, read, Tally};
use tch::{Kind, Tensor};
use tch_lens::{BertNextSentencePrediction, Component, Error, HookedEncoder, HookedTransformer, LoadOptions, Tokens};

const TOLERANCE: f64 = 1e-4;

fn folder(name: &str) -> PathBuf {
    fixtures().join("encoder_heads").join(name)
}

fn tokens(expected: &BTreeMap<String, Tensor>) -> Tokens {
    let tokens = Tokens::new(&expected["tokens"]).unwrap().with_mask(&expected["mask"]).unwrap();
    match expected.get("types") {
        Some(types) => tokens.with_types(types).unwrap(),
        None => tokens,
    }
}

/// What transformers names `logits`, of this encoder.
fn logits(model: &HookedEncoder, name: &str, tokens: &Tokens) -> Tensor {
    match name {
        _ if name.ends_with("ForSequenceClassification") => model.classify(tokens).unwrap(),
        "ElectraForPreTraining" => model.forward(tokens).unwrap().squeeze_dim(-1),
        _ => model.forward(tokens).unwrap(),
    }
}

#[test]
fn heads_agree_with_transformers() {
    let mut tally = Tally::default();
    for entry in std::fs::read_dir(fixtures().join("encoder_heads")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let expected = read(&folder(&name).join("expected.safetensors"));
        let tokens = tokens(&expected);
        let model = match HookedEncoder::from_pretrained(folder(&name)) {
            Ok(model) => model,
            Err(error) => {
                tally.failures.push(format!("{name}: {error}"));
                continue;
            }
        };
        let real = |of: &Tensor| match of.size()[..] {
            [2, 9] => of * &expected["mask"],
            [2, 9, _] => of * expected["mask"].unsqueeze(-1),
            _ => of.shallow_clone(),
        };
        let ours = logits(&model, &name, &tokens);
        tally.compare(&name, &real(&ours), &real(&expected["logits"]), TOLERANCE);

        // Both kinds of save make the same model.
        let saved = tempfile::tempdir().unwrap();
        model.save_pretrained(saved.path().join("own")).unwrap();
        let own = LoadOptions::new().open_encoder(saved.path().join("own")).unwrap();
        tally.compare(&format!("{name}, saved"), &real(&logits(&own, &name, &tokens)), &real(&ours), 0.0);
        match model.save_hugging_face(saved.path().join("theirs"), Kind::Float) {
            Ok(()) => {
                let theirs = HookedEncoder::from_pretrained(saved.path().join("theirs")).unwrap();
                let theirs = logits(&theirs, &name, &tokens);
                tally.compare(&format!("{name}, saved for transformers"), &real(&theirs), &real(&ours), 0.0);
            }
            Err(error) => tally.failures.push(format!("{name}, saved for transformers: {error}")),
        }

        // A class's logit is the sum of what the parts of the model give it, through pooler, head and every norm.
        let exact = LoadOptions::new().kind(Kind::Double).open_encoder(folder(&name)).unwrap();
        let row = Tokens::new(&expected["tokens"].narrow(0, 0, 1)).unwrap();
        let (_, cache) = exact.run_with_cache(row).unwrap();
        let parts = cache.decompose_resid(Default::default()).unwrap();
        let error = cache.logit_attrs(&parts, 0).unwrap().residual_error().unwrap();
        if error > 1e-6 {
            tally.failures.push(format!("{name}: the parts sum to something else, {error:e}"));
        }
        if exact.config().embed.token_types > 1 && !parts.rows().contains(&Component::TokenTypeEmbed) {
            tally.failures.push(format!("{name}: no part of the token types"));
        }
    }
    tally.finish("heads of encoders");
}

#[test]
fn one_checkpoint_predicts_masked_tokens_and_next_sentences() {
    let mut tally = Tally::default();
    let expected = read(&folder("BertForPreTraining").join("expected.safetensors"));
    let model = BertNextSentencePrediction::from_pretrained(folder("BertForPreTraining")).unwrap();
    tally.compare("next sentence", &model.forward(&tokens(&expected)).unwrap(), &expected["nsp"], TOLERANCE);
    tally.finish("next sentences");

    let without_types = Tokens::new(&expected["tokens"]).unwrap();
    let error = model.forward(&without_types).unwrap_err();
    assert!(matches!(error, Error::WrongInput { .. }) && error.to_string().contains("with_types"), "{error}");
    assert!(BertNextSentencePrediction::from_pretrained(folder("BertForSequenceClassification")).is_err());
}

#[test]
fn an_encoder_refuses_what_it_cannot_do() {
    let refused = |error: Error, words: &str| {
        assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains(words), "{error}");
    };
    let causal = HookedTransformer::from_pretrained(fixtures().join("gpt2")).unwrap();
    refused(HookedEncoder::new(causal).unwrap_err(), "no encoder");
    let masked = HookedEncoder::from_pretrained(fixtures().join("transformers/bert")).unwrap();
    refused(masked.classify([1, 2, 3]).unwrap_err(), "does not classify");
    let labels = HookedEncoder::from_pretrained(folder("BertForTokenClassification")).unwrap();
    refused(labels.predictions([1, 2, 3]).unwrap_err(), "classifies");
    assert!(matches!(masked.predictions("text").unwrap_err(), Error::Tokenizer { .. }));
}

#[test]
fn names_are_those_of_transformer_lens() {
    let model = HookedEncoder::from_pretrained(fixtures().join("transformers/bert")).unwrap();
    let (_, cache) = model.run_with_cache([1, 4, 7]).unwrap();
    for name in [
        "embed.hook_embed",
        "embed.hook_pos_embed",
        "embed.hook_token_type_embed",
        "hook_full_embed",
        "blocks.0.hook_attn_out",
        "blocks.0.hook_resid_mid",
        "blocks.0.hook_resid_post",
        "blocks.0.hook_normalized_resid_post",
        "blocks.1.mlp.hook_post",
        "blocks.1.attn.hook_pattern",
        "mlm_head.ln.hook_normalized",
    ] {
        assert!(cache.get(name).is_ok(), "{name}");
    }
}
