//! Tokens under TransformerLens' names: truncation, batches, positions, offsets, and `test_prompt`.

use rstest::rstest;
use tch::{IndexOp, Tensor};
use tch_lens::{
    Bos, Error, HookedTransformer, LoadOptions, Occurrence, PaddingSide, PromptTestOptions, TokenOptions, Tokenizer,
    TokenizerError, Tokens,
};

use super::common;
use super::text::{byte_fallback, byte_level, tokenizers};

/// A model of five words whose context is 9 tokens.
fn model() -> HookedTransformer {
    common::raw("gpt2").with_tokenizer(common::tokenizer())
}

#[rstest]
#[case(PaddingSide::Right)]
#[case(PaddingSide::Left)]
fn rows_are_cut_to_the_context_where_that_is_asked_for(#[case] side: PaddingSide) {
    let model = model();
    let n_ctx = model.config().n_ctx;
    let long = "the road ends ".repeat(n_ctx);
    let options = TokenOptions::new().padding_side(side).truncate(true);
    let cut = model.to_tokens_with([long.as_str(), "the road"], options).unwrap();
    assert_eq!(cut.ids.size(), [2, n_ctx as i64]);
    let rows = cut.rows().unwrap();
    assert_eq!(rows[0], model.to_tokens(long.as_str()).unwrap().rows().unwrap()[0][..n_ctx]); // BOS counts
    assert_eq!(rows[1], [0, 2, 3]);
    assert_eq!(model.forward(&cut).unwrap().size()[1], n_ctx as i64);
    // The same of ids, tensors and tokens that are ready; nothing changes what fits.
    let whole = model.to_tokens_with([long.as_str(), "the road"], TokenOptions::new().padding_side(side)).unwrap();
    let again = model.to_tokens_with(&whole, options).unwrap();
    assert_eq!(again.rows().unwrap(), rows);
    assert_eq!(model.to_tokens_with(&whole.ids, options).unwrap().ids, whole.ids.i((.., ..n_ctx as i64)));
    assert_eq!(model.to_tokens_with(whole.rows().unwrap(), options).unwrap().rows().unwrap(), rows);
    assert_eq!(model.to_tokens_with(&cut, options).unwrap().ids, cut.ids);
    // Not asked for, all is kept, and a run refuses it.
    assert_eq!(whole.ids.size()[1] as usize, 3 * n_ctx + 1);
    let expected = n_ctx;
    let error = model.forward(&whole).unwrap_err();
    assert!(matches!(error, Error::PromptTooLong { n_ctx, tokens } if n_ctx == expected && tokens == 3 * n_ctx + 1));
}

#[test]
fn ids_become_text_by_row() {
    let model = model();
    let tokens = model.to_tokens_with(["the road ends", "road"], TokenOptions::new().padding_side(PaddingSide::Left));
    let tokens = tokens.unwrap();
    assert_eq!(model.to_string_batch(&tokens).unwrap(), ["<s> the road ends", "<s> road"]); // no padding
    assert_eq!(model.to_str_tokens_batch(&tokens).unwrap(), [vec!["<s>", "the", "road", "ends"], vec!["<s>", "road"]]);
    assert_eq!(model.to_str_tokens_batch(["the", "road ends"]).unwrap()[1], ["<s>", "road", "ends"]);
    assert_eq!(model.to_string(vec![2, 3]).unwrap(), "the road");
    assert_eq!(model.to_string([2, 3]).unwrap(), "the road");
    assert_eq!(model.to_string([2i64, 3].as_slice()).unwrap(), "the road");
    assert_eq!(model.to_string(Tensor::from_slice(&[2i64, 3])).unwrap(), "the road");
    assert_eq!(model.to_string(tokens.ids.i((0, 3))).unwrap(), "ends"); // a tensor without axes
    assert_eq!(model.to_string(tokens.ids.i(0..1)).unwrap(), "<s> the road ends");
    assert_eq!(model.to_string(Vec::<i64>::new()).unwrap(), "");
    assert_eq!(model.to_string_batch(vec![vec![2], vec![], vec![3, 4]]).unwrap(), ["the", "", "road ends"]);
    assert_eq!(model.to_str_tokens([4, 3]).unwrap(), ["ends", "road"]);
    assert_eq!(model.to_str_tokens(tokens.ids.i(0)).unwrap(), ["<s>", "the", "road", "ends"]);
    for error in [model.to_string(&tokens).err(), model.to_str_tokens(&tokens).map(|_| ()).err()] {
        let error = error.unwrap().to_string();
        assert!(error.starts_with("the input has shape [2], expected one row; use `to_str"), "{error}");
    }
    assert!(matches!(model.to_str_tokens([999]), Err(Error::TokenOutOfRange { id: 999, .. })));
    let broken = Tokens { ids: tokens.ids.shallow_clone(), mask: Some(Tensor::from_slice(&[true])), types: None };
    assert!(matches!(model.to_string_batch(&broken), Err(Error::Shape { .. })));
}

#[test]
fn a_token_s_position_is_its_column() {
    let model = model();
    let text = "road the road ends";
    let position = |token: &str, occurrence| model.get_token_position(token, text, occurrence).unwrap();
    assert_eq!((position("road", Occurrence::First), position("road", Occurrence::Last)), (1, 3));
    assert_eq!(position("<s>", Occurrence::First), 0);
    assert_eq!(model.get_token_position(3, [3, 2, 3], Occurrence::Last).unwrap(), 2);
    let tensor = Tensor::from_slice2(&[[3i64, 2, 3]]);
    assert_eq!(model.get_token_position(2, &tensor, Occurrence::First).unwrap(), 1);
    // Padding has columns, but is not found.
    let padded = Tokens { ids: tensor, mask: Some(Tensor::from_slice2(&[[false, true, true]])), types: None };
    assert_eq!(model.get_token_position(3, &padded, Occurrence::First).unwrap(), 2);
    let error = model.get_token_position("ends", "the road", Occurrence::First).unwrap_err();
    assert_eq!(error.to_string(), "token 4 (`ends`) is none of the prompt's 3 tokens");
    let several = model.get_token_position("the", ["the", "road"], Occurrence::First);
    assert!(matches!(several, Err(Error::Shape { .. })));
    assert!(matches!(
        model.get_token_position("the road", "the road", Occurrence::First),
        Err(Error::Tokenizer(TokenizerError::NotOneToken { .. }))
    ));
}

#[test]
fn tokens_know_where_they_lie() {
    let spans = |tokenizer: &Tokenizer, text: &str, bos: bool| {
        let spans = tokenizer.encode_spans(text, bos).unwrap();
        let ids: Vec<i64> = spans.iter().map(|span| span.id).collect();
        assert_eq!(ids, tokenizer.encode(text, bos).unwrap());
        for span in &spans {
            let (before, part) = (&text[..span.bytes.start], &text[span.bytes.clone()]);
            let start = before.chars().count();
            assert_eq!(span.chars, start..start + part.chars().count());
        }
        spans.into_iter().map(|span| text[span.bytes].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        spans(&common::tokenizer().allow_unknown(true), "the  road é ends", true),
        ["", "the", "road", "é", "ends"]
    );
    // Each of a character's tokens has all of it.
    assert_eq!(spans(&byte_level(), "né lo€a", false), ["n", "é", "é", " lo", "€", "€a"]);
    assert_eq!(spans(&byte_fallback(), "go é\n go", true), ["", "go", " ", "é", "é", "\n", " go"]);
    assert_eq!(spans(&byte_level(), "", false), Vec::<String>::new());
    for (_, tokenizer) in tokenizers() {
        let tokenizer = tokenizer.allow_unknown(true);
        spans(&tokenizer, "The road's  é😀 \n end", tokenizer.bos_id().is_some());
    }
}

/// What TransformerLens 3.9 prints of the toy model; lists are cut at 80 columns here.
#[cfg(feature = "toy")]
#[test]
fn a_tested_prompt_prints_as_transformer_lens_table() {
    let model = LoadOptions::new().no_processing().toy().unwrap();
    let prompt = "When Mary and John went to the shop, John gave a bag to";
    let options = PromptTestOptions::new().top_k(3);
    let test = model.test_prompt_with(prompt, ["Mary", "John", "the shop"], options).unwrap();
    let expected = "\
Tokenized prompt: ['<|endoftext|>', 'When', ' Mary', ' and', ' John', ' went',
    ' to', ' the', ' shop', ',', ' John', ' gave', ' a', ' bag', ' to']
Tokenized answers: [[' Mary'], [' John'], [' the', ' shop']]
Performance on answer tokens:
Rank: 0        Logit: 17.78 Prob: 99.94% Token: | Mary|
Rank: 28       Logit:  5.70 Prob:  0.00% Token: | John|
Rank: 544      Logit: -1.71 Prob:  0.00% Token: | the|
Top 0th token. Logit: 17.78 Prob: 99.94% Token: | Mary|
Top 1th token. Logit:  8.43 Prob:  0.01% Token: | Ruth|
Top 2th token. Logit:  7.73 Prob:  0.00% Token: | Nina|
Ranks of the answer tokens: [[(' Mary', 0), (' John', 28), (' the', 544)]]";
    assert_eq!(test.to_string(), expected);
    assert!(expected.lines().all(|line| line.chars().count() <= 80));

    let test = model.test_prompt_with("The capital of France is", ["Paris."], options).unwrap();
    let expected = "\
Tokenized prompt: ['<|endoftext|>', 'The', ' capital', ' of', ' France', ' is']
Tokenized answer: [' Paris', '.']
Performance on answer token:
Rank: 0        Logit: 15.60 Prob: 99.21% Token: | Paris|
Top 0th token. Logit: 15.60 Prob: 99.21% Token: | Paris|
Top 1th token. Logit: 10.23 Prob:  0.46% Token: | French|
Top 2th token. Logit:  8.49 Prob:  0.08% Token: | France|
Performance on answer token:
Rank: 0        Logit: 18.47 Prob: 99.99% Token: |.|
Top 0th token. Logit: 18.47 Prob: 99.99% Token: |.|
Top 1th token. Logit:  8.75 Prob:  0.01% Token: | lies|
Top 2th token. Logit:  7.27 Prob:  0.00% Token: |?|
Ranks of the answer tokens: [(' Paris', 0), ('.', 0)]";
    assert_eq!(test.to_string(), expected);

    // The value has what is printed, and its choices count.
    let (mary, john) = (&test.positions[0], &test.positions[1]);
    assert_eq!((mary.top.len(), john.answers[0].text.as_str()), (3, "."));
    let without = options.prepend_bos(Bos::No).top_k(1);
    let test = model.test_prompt_with(prompt, [" Mary"], without).unwrap();
    assert_eq!((test.prompt.len(), test.positions[0].top.len()), (14, 1));
    let test = model.test_prompt_with("Mary", ["Mary"], options.prepend_space_to_answer(false)).unwrap();
    assert_eq!(test.answers, [["Mary"]]);
    assert!(matches!(model.test_prompt(prompt, Vec::<String>::new()), Err(Error::EmptyPrompt)));
    assert!(matches!(
        model.test_prompt_with(prompt, [""], options.prepend_space_to_answer(false)),
        Err(Error::EmptyPrompt)
    ));
}
