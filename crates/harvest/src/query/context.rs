//! The tokens around examples.

use std::collections::{BTreeMap, BTreeSet};

use arrow_array::cast::AsArray as _;
use arrow_array::types::UInt32Type;
use datafusion::logical_expr::{ident, lit};
use datafusion::prelude::Expr;
use futures_util::TryStreamExt as _;
use tch_lens::tch::Device;
use tch_lens::Tokenizer;

use super::{Example, Query};
use crate::engine::{block_on, from_engine};
use crate::manifest::sha256;
use crate::{load_model, Error, Result};

/// The tokens around an example, which the model read in the same row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The tokens, the example's among them.
    pub tokens: Vec<u32>,
    /// The place of the example's token in them.
    pub at: usize,
}

impl Context {
    /// The text before the token, of the token, and after it.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] for tokens that the tokenizer does not have.
    pub fn texts(&self, tokenizer: &Tokenizer) -> Result<[String; 3]> {
        let text = |tokens: &[u32]| -> Result<String> {
            let ids: Vec<i64> = tokens.iter().map(|&token| token.into()).collect();
            Ok(tokenizer.decode(&ids)?)
        };
        Ok([text(&self.tokens[..self.at])?, text(&self.tokens[self.at..=self.at])?, text(&self.tokens[self.at + 1..])?])
    }
}

impl Query {
    /// The tokens around each example: so many before and after it, as far as its row has them. Reads the rows of the examples' shards.
    ///
    /// # Errors
    ///
    /// [`Error::Engine`] for an example that is not of this harvest; [`Error::Store`].
    pub fn contexts(&self, examples: &[Example], before: usize, after: usize) -> Result<Vec<Context>> {
        let wanted: BTreeSet<(u32, u32)> = examples.iter().map(|example| (example.shard.0, example.row)).collect();
        let shards: BTreeSet<u32> = wanted.iter().map(|&(shard, _)| shard).collect();
        let shards: Vec<Expr> = shards.into_iter().map(lit).collect();
        let rows = block_on(1, async {
            let table = self.ordered.table("rows").await.map_err(from_engine)?;
            let table = table
                .filter(ident("shard").in_list(shards, false))
                .and_then(|table| table.select(vec![ident("shard"), ident("row"), ident("tokens")]))
                .map_err(from_engine)?;
            let mut found = BTreeMap::new();
            let mut batches = table.execute_stream().await.map_err(from_engine)?;
            while let Some(batch) = batches.try_next().await.map_err(from_engine)? {
                let number = |at: usize| batch.column(at).as_primitive::<UInt32Type>();
                let tokens = batch.column(2).as_list::<i32>();
                for at in 0..batch.num_rows() {
                    let row = (number(0).value(at), number(1).value(at));
                    if wanted.contains(&row) {
                        found.insert(row, tokens.value(at).as_primitive::<UInt32Type>().values().to_vec());
                    }
                }
            }
            Ok(found)
        })?;
        examples
            .iter()
            .map(|example| {
                let at = example.position as usize;
                let row = rows.get(&(example.shard.0, example.row)).filter(|row| at < row.len());
                let row = row.ok_or_else(|| {
                    Error::Engine(format!("shard {} has no row {} with a position {at}", example.shard, example.row))
                })?;
                let from = at.saturating_sub(before);
                let to = at.saturating_add(after).saturating_add(1).min(row.len());
                Ok(Context { tokens: row[from..to].to_vec(), at: at - from })
            })
            .collect()
    }

    /// The tokenizer with which the corpus was read. Loads the model only where it is one on the hub.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a corpus that was tokenised already and a model whose tokenizer is not in its folder; [`Error::OtherModel`] for
    /// a tokenizer that changed since; [`Error::Model`].
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let model = &self.manifest.model;
        let folder = std::path::Path::new(&model.source);
        let tokenizer = if model.source != "toy" && folder.is_dir() {
            Tokenizer::from_folder(folder)?.ok_or_else(|| {
                Error::Setting(format!("`{}` has no `tokenizer.json`, so tokens have no text", model.source))
            })?
        } else {
            load_model(&model.source, model.dtype, model.processed, Device::Cpu)?.tokenizer()?.clone()
        };
        let found = sha256(tokenizer.json()?.as_bytes());
        match &self.manifest.tokenizer {
            Some(expected) if *expected != found => Err(Error::OtherModel {
                what: "tokenizer's hash",
                expected: expected.clone(),
                found,
                source_name: model.source.clone(),
            }),
            _ => Ok(tokenizer),
        }
    }
}
