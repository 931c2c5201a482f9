//! Questions about a harvest.

use clap::{Args, Subcommand, ValueEnum};
use tch_lens_harvest::query::{Example, Measure, Query, TopOptions};
use tch_lens_harvest::{Error, Result, Store};

#[derive(Debug, Subcommand)]
pub(super) enum Question {
    /// Answer a question in SQL over the tables activations, rows and shards.
    Sql {
        /// Where the harvest lies.
        store: String,
        /// The question, such as: SELECT count(*) FROM activations.
        question: String,
    },
    /// Show the examples at which a neuron or feature is largest, with the tokens around them.
    Top {
        /// Where the harvest lies.
        store: String,
        /// The point, such as blocks.0.mlp.hook_post.
        point: String,
        /// The number of the neuron, feature or entry, from 0.
        channel: usize,
        #[command(flatten)]
        examples: Examples,
    },
    /// Show the activations that are nearest to a direction, with the tokens around them.
    Nearest {
        /// Where the harvest lies.
        store: String,
        /// The point, such as blocks.1.hook_resid_post.
        point: String,
        /// A file with the direction, as a list of numbers in JSON.
        #[arg(long, value_name = "FILE")]
        direction: String,
        /// How near an activation is.
        #[arg(long, value_enum, default_value = "cosine")]
        measure: Near,
        #[command(flatten)]
        examples: Examples,
    },
    /// Count a neuron's or feature's numbers in ranges.
    Histogram {
        /// Where the harvest lies.
        store: String,
        /// The point.
        point: String,
        /// The number of the neuron, feature or entry, from 0.
        channel: usize,
        /// The number of ranges.
        #[arg(long, default_value_t = 20)]
        ranges: usize,
        /// The lowest and the highest number; those found, unless said otherwise.
        #[arg(long, num_args = 2, value_names = ["LOW", "HIGH"], allow_negative_numbers = true)]
        bounds: Option<Vec<f32>>,
    },
    /// Print how often each neuron or feature is active, the most active first.
    Density {
        /// Where the harvest lies.
        store: String,
        /// The point.
        point: String,
        /// Active is what is greater than this.
        #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
        threshold: f32,
        /// How many are printed.
        #[arg(long, short = 'n', default_value_t = 20)]
        count: usize,
    },
    /// Print how often neurons or features are active together.
    Together {
        /// Where the harvest lies.
        store: String,
        /// The point.
        point: String,
        /// The numbers of the neurons, features or entries, from 0.
        #[arg(required = true, num_args = 2..)]
        channels: Vec<usize>,
        /// Active is what is greater than this.
        #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
        threshold: f32,
    },
}

#[derive(Debug, Args)]
pub(super) struct Examples {
    /// How many examples.
    #[arg(long, short = 'n', default_value_t = 10)]
    count: usize,
    /// Let several examples be of one document.
    #[arg(long)]
    any_document: bool,
    /// The tokens shown before and after.
    #[arg(long, default_value_t = 12)]
    around: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Near {
    Dot,
    Cosine,
}

impl Examples {
    fn options(&self) -> TopOptions {
        let options = TopOptions::new(self.count);
        if self.any_document {
            options.any_document()
        } else {
            options
        }
    }

    /// One line an example: its number, its place, and its text with the token in angle brackets.
    fn print(&self, query: &Query, examples: &[Example]) -> Result<()> {
        let contexts = query.contexts(examples, self.around, self.around)?;
        let tokenizer = query.tokenizer()?;
        for (example, context) in examples.iter().zip(contexts) {
            let [before, token, after] = context.texts(&tokenizer)?.map(|text| text.replace('\n', "\u{21b5}"));
            let Example { value, shard, row, position, document, .. } = example;
            println!("{value:>10.4}  document {document}, shard {shard}, row {row}, position {position}  {before}\u{27e8}{token}\u{27e9}{after}");
        }
        Ok(())
    }
}

impl Question {
    pub(super) fn answer(self) -> Result<()> {
        let open = |store: &str| Query::open(&Store::open(store)?);
        match self {
            Question::Sql { store, question } => println!("{}", open(&store)?.sql_text(&question)?),
            Question::Top { store, point, channel, examples } => {
                let query = open(&store)?;
                examples.print(&query, &query.top_examples(&point, channel, examples.options())?)?;
            }
            Question::Nearest { store, point, direction, measure, examples } => {
                let query = open(&store)?;
                let measure = match measure {
                    Near::Dot => Measure::Dot,
                    Near::Cosine => Measure::Cosine,
                };
                let direction = read_direction(&direction)?;
                examples.print(&query, &query.nearest(&point, &direction, measure, examples.options())?)?;
            }
            Question::Histogram { store, point, channel, ranges, bounds } => {
                let bounds = bounds.map(|both| (both[0], both[1]));
                let found = open(&store)?.histogram(&point, channel, ranges, bounds)?;
                let width = (f64::from(found.high) - f64::from(found.low)) / ranges as f64;
                println!("under {}: {}", found.low, found.below);
                for (range, count) in found.counts.iter().enumerate() {
                    let from = f64::from(found.low) + width * range as f64;
                    println!("{from:.4} to {:.4}: {count}", from + width);
                }
                println!("over {}: {}\nexactly 0: {}", found.high, found.above, found.zeros);
            }
            Question::Density { store, point, threshold, count } => {
                let density = open(&store)?.density(&point, threshold)?;
                let mut channels: Vec<usize> = (0..density.active.len()).collect();
                channels.sort_by_key(|&channel| std::cmp::Reverse(density.active[channel]));
                for channel in channels.into_iter().take(count) {
                    println!(
                        "{channel}: {} of {} ({:.4})",
                        density.active[channel],
                        density.activations,
                        density.of(channel)
                    );
                }
            }
            Question::Together { store, point, channels, threshold } => {
                let found = open(&store)?.co_activation(&point, &channels, threshold)?;
                for i in 0..channels.len() {
                    for j in i + 1..channels.len() {
                        println!(
                            "{} and {}: {} of {} (of {} and {}, Jaccard {:.4})",
                            channels[i],
                            channels[j],
                            found.together[i][j],
                            found.activations,
                            found.together[i][i],
                            found.together[j][j],
                            found.jaccard(i, j),
                        );
                    }
                }
            }
        }
        Ok(())
    }
}

fn read_direction(path: &str) -> Result<Vec<f32>> {
    let wrong = |why: String| Error::Setting(format!("`{path}` is no direction, a list of numbers in JSON: {why}"));
    let json = std::fs::read(path).map_err(|why| wrong(why.to_string()))?;
    serde_json::from_slice(&json).map_err(|why| wrong(why.to_string()))
}
