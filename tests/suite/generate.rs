//! Continuations of single rows: stop conditions, text and refused options.

use tch::{Kind, Tensor};
use tch_lens::generate::{Continuation, Progress};
use tch_lens::{Config, Error, GenerateOptions, SamplingOptions, StopReason, Tokenizer};

use super::text::{byte_fallback, byte_level};

/// A configuration of which only the sizes of context and vocabulary matter here.
fn config(n_ctx: usize, d_vocab: usize) -> Config {
    Config { n_ctx, d_vocab, d_vocab_out: d_vocab, ..small() }
}

fn small() -> Config {
    super::common::raw("gpt2").config().clone()
}

/// A row after `prompt` that is pushed `ids`, and what each did.
fn pushed(
    options: &GenerateOptions,
    tokenizer: &Tokenizer,
    n_ctx: usize,
    prompt: &[i64],
    ids: &[i64],
) -> (Continuation, Vec<Progress>) {
    let config = config(n_ctx, tokenizer.vocab_size());
    let (_, mut rows) = options.start(&[prompt.to_vec()], &config, Some(tokenizer)).unwrap();
    let mut row = rows.remove(0);
    let progress = ids.iter().map(|&id| row.push(id).unwrap()).collect();
    (row, progress)
}

#[test]
fn a_stop_string_ends_the_text_across_tokens() {
    let tokenizer = byte_level();
    let encode = |text: &str| tokenizer.encode(text, false).unwrap();
    let options = GenerateOptions::new().max_new_tokens(50).stop_string("€a").stop_string("never");
    // "€a" begins in one token and ends in the middle of another: E2 82, then AC with `a`.
    let ids = encode("lob €ab");
    let (row, progress) = pushed(&options, &tokenizer, 100, &encode("€"), &ids);
    assert_eq!(row.stop_reason(), Some(&StopReason::StopString("€a".into())));
    assert_eq!(row.text(), "lob ");
    assert_eq!(row.new_ids(), &ids[..ids.len() - 1]); // what follows the stop is not taken
    let joined: String = progress.iter().map(|progress| progress.text.as_str()).collect();
    assert_eq!(joined, row.text());
    assert!(progress.last().unwrap().stop.is_some());

    // The beginning of a stop string is held back, and comes at the end where the rest does not.
    let (row, progress) = pushed(&options.clone().max_new_tokens(5), &tokenizer, 100, &[0], &encode("aneve"));
    let shown: Vec<&str> = progress.iter().map(|progress| progress.text.as_str()).collect();
    assert_eq!(shown, ["a", "", "", "", "neve"]);
    assert_eq!((row.text(), row.stop_reason()), ("aneve", Some(&StopReason::MaxNewTokens)));

    // It is sought in the continuation, not in the prompt or across its end.
    let (row, _) = pushed(&options, &tokenizer, 100, &encode("never €"), &encode("a"));
    assert_eq!((row.text(), row.stop_reason()), ("a", None));
}

/// Which of several strings ended a row: the first to be complete, and of those complete at once the longest, in whatever order they
/// were named and however late the text became certain.
#[test]
fn the_stop_string_that_ended_a_row_is_named() {
    let byte_level = byte_level();
    let encode = |text: &str| byte_level.encode(text, false).unwrap();
    let ended = |tokenizer: &Tokenizer, strings: &[&str], ids: &[i64], n: usize| {
        let options =
            strings.iter().fold(GenerateOptions::new().max_new_tokens(n), |options, s| options.stop_string(*s));
        let (row, progress) = pushed(&options, tokenizer, 100, &[1], ids);
        assert_eq!(progress.last().unwrap().stop.as_ref(), row.stop_reason());
        (row.text().to_string(), row.stop_reason().cloned(), row.new_ids().len())
    };
    let stop = |text: &str| Some(StopReason::StopString(text.into()));
    for strings in [["lo", "ob", "b "], ["b ", "ob", "lo"]] {
        assert_eq!(ended(&byte_level, &strings, &encode("blob loob "), 50).1, stop("lo"));
        assert_eq!(ended(&byte_level, &strings, &encode("mob lo"), 50).1, stop("ob"));
    }
    for strings in [["ob", "lob"], ["lob", "ob"]] {
        assert_eq!(ended(&byte_level, &strings, &encode("a lob"), 50), ("a ".into(), stop("lob"), 3));
    }
    // Found in what is tentative: the next token could still change what the bytes mean.
    let byte_fallback = byte_fallback();
    let ids = byte_fallback.encode("go\n\n go", false).unwrap();
    for strings in [["\n\n", "x"], ["x", "\n\n"]] {
        assert_eq!(ended(&byte_fallback, &strings, &ids[..3], 50), (" go".into(), stop("\n\n"), 3));
    }
    // What stands before it in the tentative text belongs to the row.
    let ids = byte_fallback.encode("xy\n\n", false).unwrap();
    let (text, reason, n) = ended(&byte_fallback, &["\n\n"], &ids, 50);
    assert_eq!((text.trim_start(), reason, n), ("xy", stop("\n\n"), ids.len()));
    // Found in what the last token leaves: an incomplete character is shown as such, and may be what is sought.
    for strings in [["a\u{fffd}", "z"], ["z", "a\u{fffd}"]] {
        assert_eq!(ended(&byte_level, &strings, &[b'a'.into(), 0xe2], 2), (String::new(), stop("a\u{fffd}"), 2));
    }
}

#[test]
fn a_stop_string_of_byte_tokens_does_not_wait_for_the_next_token() {
    let tokenizer = byte_fallback();
    let ids = tokenizer.encode("go\n\n go", false).unwrap();
    let options = GenerateOptions::new().max_new_tokens(50).stop_string("\n\n");
    let (row, progress) = pushed(&options, &tokenizer, 100, &[1], &ids[..3]);
    assert_eq!(row.stop_reason(), Some(&StopReason::StopString("\n\n".into())));
    assert_eq!((progress.len(), row.text()), (3, " go"));
}

#[test]
fn stop_tokens_are_no_text_and_lengths_end_a_row() {
    let tokenizer = byte_level();
    let eos = tokenizer.eos_ids();
    let prompt = [b'x'.into(), b'y'.into()];
    let options = GenerateOptions::new().max_new_tokens(4);
    let (row, _) = pushed(&options, &tokenizer, 100, &prompt, &[b'a'.into(), 0xe2, eos[1], b'b'.into()]);
    assert_eq!(row.stop_reason(), Some(&StopReason::StopToken(eos[1])));
    assert_eq!((row.text(), row.new_ids().len()), ("a\u{fffd}", 3));

    let (row, _) = pushed(&options.clone().stop_at_eos(false), &tokenizer, 100, &prompt, &[eos[0], 65, 66, 67, 68]);
    assert_eq!(row.stop_reason(), Some(&StopReason::MaxNewTokens));
    assert_eq!(row.text(), "<|endoftext|>ABC");
    let (row, progress) = pushed(&options.clone().stop_token(66), &tokenizer, 100, &prompt, &[65, 66]);
    assert_eq!((row.text(), progress[1].stop.clone()), ("A", Some(StopReason::StopToken(66))));

    let (row, _) = pushed(&options, &tokenizer, 4, &prompt, &[65, 66, 67]);
    assert_eq!((row.stop_reason(), row.text()), (Some(&StopReason::ContextFull), "AB"));
    let (row, progress) = pushed(&options, &tokenizer, 2, &prompt, &[65]);
    assert_eq!((row.stop_reason(), row.new_ids().len()), (Some(&StopReason::ContextFull), 0));
    assert_eq!(progress[0], Progress { text: String::new(), stop: Some(StopReason::ContextFull) });
}

#[test]
fn rows_are_prompts_times_samples() {
    let tokenizer = byte_level();
    let config = config(16, tokenizer.vocab_size());
    let options = GenerateOptions::new().samples(3).min_new_tokens(2).stop_token(7);
    let prompts = [vec![1, 2], vec![3]];
    let (sampler, mut rows) = options.start(&prompts, &config, Some(&tokenizer)).unwrap();
    let begins: Vec<&[i64]> = rows.iter().map(Continuation::ids).collect();
    assert_eq!(begins, [&[1i64, 2][..], &[1, 2], &[1, 2], &[3], &[3], &[3]]);
    // All but the stop tokens are unlikely: the first two tokens are held off them.
    let mut logits = vec![0.0f32; config.d_vocab_out];
    for id in [vec![7], tokenizer.eos_ids()].concat() {
        logits[id as usize] = 100.0;
    }
    let logits = Tensor::from_slice(&logits).expand([6, -1], false);
    for step in 0..3 {
        let ids = sampler.sample(&logits, &mut rows).unwrap();
        for (row, &id) in rows.iter_mut().zip(&ids) {
            let progress = row.push(id).unwrap();
            assert_eq!(matches!(progress.stop, Some(StopReason::StopToken(_))), step == 2);
        }
    }
    let samples: Vec<&[i64]> = rows.iter().map(Continuation::new_ids).collect();
    assert!(samples[0] != samples[1] && samples[1] != samples[2] && samples[0] != samples[3]);
    // One prompt alone, or fewer samples: the same rows.
    let (sampler, mut alone) = options.samples(1).start(&prompts, &config, Some(&tokenizer)).unwrap();
    let first = sampler.sample(&logits.narrow(0, 0, 2), &mut alone).unwrap();
    assert_eq!(first, [samples[0][0], samples[3][0]]);
    // Those that go on, as references.
    let mut active: Vec<&mut Continuation> = alone.iter_mut().skip(1).collect();
    assert_eq!(sampler.sample(&logits.narrow(0, 0, 1), &mut active).unwrap(), [samples[3][1]]);
}

#[test]
fn what_cannot_be_is_an_error_of_one_sentence() {
    let tokenizer = byte_level();
    let config = config(16, tokenizer.vocab_size());
    let (new, greedy) = (GenerateOptions::new, GenerateOptions::new().sampling(SamplingOptions::greedy()));
    let said = |options: GenerateOptions, prompt: &[i64], tokenizer: Option<&Tokenizer>| {
        options.start(&[prompt.to_vec()], &config, tokenizer).map(|_| ()).unwrap_err().to_string()
    };
    let known = |options| said(options, &[1], Some(&tokenizer));
    assert_eq!(known(new().max_new_tokens(0)), "`max_new_tokens` is 0: it must be at least 1");
    assert_eq!(known(new().samples(0)), "`samples` is 0: it must be at least 1");
    assert_eq!(
        known(greedy.clone().samples(2)),
        "`samples` is 2: it must be 1 with `greedy`, where all would be the same"
    );
    assert_eq!(known(new().min_new_tokens(11)), "`min_new_tokens` is 11: it must be at most `max_new_tokens`, 10");
    assert_eq!(
        known(new().min_new_tokens(1).stop_at_eos(false)),
        "`min_new_tokens` is 1: it needs a stop token that it can hold off"
    );
    assert_eq!(known(new().stop_string("")), "`stop_strings` is \"\": a stop string must have at least one character");
    assert!(known(new().stop_token(-1)).starts_with("token id -1 is out of range"));
    assert!(known(new().sampling(SamplingOptions::new().temperature(0.0))).starts_with("`temperature` is 0: "));
    assert!(said(new().stop_string("x"), &[1], None).starts_with("this model has no tokenizer"));
    assert!(said(new(), &[], None).starts_with("the prompt has no tokens"));
    assert!(said(new(), &[1; 17], None).starts_with("the prompt has 17 tokens, and the model's context holds 16"));
    assert!(said(new(), &[1, 999], None).starts_with("token id 999 is out of range"));
    // A tokenizer whose EOS token the model does not have.
    let smaller = self::config(16, 100);
    let error = new().start(&[vec![1]], &smaller, Some(&tokenizer)).unwrap_err();
    assert!(matches!(error, Error::TokenOutOfRange { d_vocab: 100, .. }));
    // Without a tokenizer a row has no text, and ends all the same.
    let (sampler, mut rows) = greedy.max_new_tokens(1).start(&[vec![1]], &smaller, None).unwrap();
    let logits = Tensor::zeros([1, 100], (Kind::Float, tch::Device::Cpu));
    let next = sampler.sample(&logits, &mut rows).unwrap();
    assert_eq!(rows[0].push(next[0]).unwrap(), Progress { text: String::new(), stop: Some(StopReason::MaxNewTokens) });
}
