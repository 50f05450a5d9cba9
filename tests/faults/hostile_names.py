"""Names that must never be called because a configuration holds them.

Most are callables of the standard library and of what is installed here that run code, write files, open
connections or read the environment; the others try to get at them by way of this package, or by letters
that look alike.
"""

# Hydra's own `instantiate` is asked for each of these too: the control.
ELSEWHERE = (
    *("os.system", "os.popen", "os.execv", "os.execvp", "os.fork", "os.kill", "os.remove", "os.unlink"),
    *("os.rename", "os.replace", "os.symlink", "os.chmod", "os.makedirs", "os.getenv", "os.putenv"),
    *("os.environ.get", "os.spawnv", "os.startfile", "os.truncate", "os._exit", "posix.system", "nt.system"),
    *("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output"),
    *("subprocess.check_call", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn"),
    *("shutil.rmtree", "shutil.move", "shutil.copy", "shutil.unpack_archive", "shutil.copytree"),
    *("builtins.eval", "builtins.exec", "builtins.open", "builtins.compile", "builtins.__import__"),
    *("builtins.getattr", "builtins.setattr", "builtins.globals", "builtins.breakpoint", "builtins.input"),
    *("eval", "exec", "open", "__import__", "print", "io.open", "io.FileIO", "codecs.open"),
    *("importlib.import_module", "importlib.reload", "importlib.__import__", "runpy.run_path"),
    *(
        "runpy.run_module",
        "imp.load_source",
        "pkgutil.get_loader",
        "code.interact",
        "code.InteractiveConsole",
    ),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "_pickle.loads", "marshal.loads", "shelve.open"),
    *("dill.load", "dill.loads", "cloudpickle.loads", "joblib.load", "copyreg._reconstructor"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "ctypes.CDLL", "ctypes.cdll"),
    *("ctypes.string_at", "ctypes.memmove", "socket.socket", "socket.create_connection"),
    *("urllib.request.urlopen", "urllib.request.urlretrieve", "http.client.HTTPConnection"),
    *("http.server.HTTPServer", "ftplib.FTP", "smtplib.SMTP", "xmlrpc.client.ServerProxy", "requests.get"),
    *("requests.post", "webbrowser.open", "tempfile.mktemp", "tempfile.NamedTemporaryFile"),
    *("multiprocessing.Process", "threading.Thread", "threading.Timer", "asyncio.run", "signal.signal"),
    *("atexit.register", "sys.exit", "sys.settrace", "sys.modules.clear", "gc.get_objects", "timeit.timeit"),
    *(
        "timeit.Timer",
        "pdb.run",
        "pdb.set_trace",
        "cProfile.run",
        "profile.run",
        "trace.Trace",
        "doctest.testfile",
    ),
    *("types.FunctionType", "types.CodeType", "operator.attrgetter", "operator.methodcaller"),
    *("functools.partial", "functools.reduce", "inspect.getsource", "ast.literal_eval", "string.Template"),
    *("logging.config.dictConfig", "logging.config.fileConfig", "logging.config.listen", "logging.os.system"),
    *("logging.FileHandler", "logging.handlers.SocketHandler", "logging.handlers.HTTPHandler"),
    *("zipfile.ZipFile", "tarfile.open", "sqlite3.connect", "dbm.open", "mailcap.findmatch"),
    *("pathlib.Path", "pathlib.Path.unlink", "pathlib.Path.write_text", "glob.glob", "fileinput.input"),
    *("venv.create", "ensurepip.bootstrap", "pip.main", "pip._internal.main", "setuptools.setup"),
    *("numpy.load", "numpy.save", "numpy.fromfile", "numpy.memmap", "numpy.loadtxt", "numpy.f2py.compile"),
    *("numpy.testing.rundocs", "numpy.ctypeslib.load_library", "pandas.read_pickle", "pandas.eval"),
    *("torch.load", "torch.save", "torch.hub.load", "torch.hub.download_url_to_file", "torch.jit.load"),
    *("torch.hub.load_state_dict_from_url", "torch.classes.load_library", "torch.ops.load_library"),
    *("torch.utils.cpp_extension.load", "torch.utils.cpp_extension.load_inline", "torch.compile"),
    *("torch.utils.collect_env.run", "torch.utils.data.DataLoader", "torch.package.PackageImporter"),
    *("torch.multiprocessing.spawn", "torch.distributed.init_process_group", "torch.export.load"),
    *("torch.serialization.load", "torch.optim.AdamW", "torch.nn.Linear", "torch.os.system"),
    *("hydra.utils.instantiate", "hydra.utils.call", "hydra.utils.get_method", "hydra.utils.get_object"),
    *(
        "hydra.utils.get_class",
        "hydra._internal.utils._locate",
        "hydra.experimental.callbacks.PickleJobInfoCallback",
    ),
    *("omegaconf.OmegaConf.load", "omegaconf.OmegaConf.register_new_resolver", "datasets.load_dataset"),
    *("datasets.load_from_disk", "transformers.pipeline", "transformers.AutoModel.from_pretrained"),
    *("huggingface_hub.snapshot_download", "huggingface_hub.login", "wandb.init", "wandb.restore"),
    *("trackio.init", "trackio.show", "gradio.Interface", "submitit.AutoExecutor", "PIL.ImageShow.show"),
    *("matplotlib.pyplot.savefig", "matplotlib.testing.compare.convert", "psutil.Popen", "psutil.Process"),
)

# Meant for `model`. The last ones name code of ours that is no model.
BY_WAY_OF_OURS = (
    *(
        "adamwprune",
        "adamwprune.",
        ".adamwprune.models.lenet.LeNet5",
        "adamwprune.models",
        "adamwprune_evil.run",
    ),
    *("adamwpruned.models.lenet.LeNet5", "adamwprune.models.lenet", "adamwprune.models.lenet.torch"),
    *(
        "adamwprune.models.lenet.torch.load",
        "adamwprune.models.lenet.nn",
        "adamwprune.models.lenet.nn.Linear",
    ),
    *("adamwprune.models.lenet.torch.os.system", "adamwprune.models.weights.torch.load"),
    *("adamwprune.models.weights.hashlib.sha256", "adamwprune.models.weights.zipfile.ZipFile"),
    *(
        "adamwprune.models.weights.Path",
        "adamwprune.models.weights.Path.unlink",
        "adamwprune.models.os.system",
    ),
    *("adamwprune.models.lenet.LeNet5.__init__", "adamwprune.models.lenet.LeNet5.__class__"),
    *("adamwprune.models.lenet.LeNet5.forward", "adamwprune.models.lenet.LeNet5.load_state_dict"),
    *("adamwprune.models.lenet.LeNet5.__init__.__globals__", "adamwprune.models.lenet.__builtins__"),
    *("adamwprune.models.lenet.__builtins__.eval", "adamwprune.models.lenet.__loader__"),
    *("adamwprune.models.lenet.__loader__.exec_module", "adamwprune.models.__init__", "adamwprune.__path__"),
    *(
        "adamwprune.models.weights._read_pickle",
        "adamwprune.models.weights._read",
        "adamwprune.models.gpt2._Block",
    ),
    *(
        "adamwprune.models.__main__.main",
        "adamwprune.models.weights.load_file_",
        "adamwprune.models.weights.load_",
    ),
    *(
        "adamwprune.models.lenet.LeNet5 ",
        " adamwprune.models.lenet.LeNet5",
        "adamwprune.models.lenet.LeNet5\n",
    ),
    *("adamwprune.models..lenet.LeNet5", "adamwprune/models/lenet.LeNet5", "adamwprune.models.lenet:LeNet5"),
    *(
        "adamwprune.models.lenet.LeNet5()",
        "adamwprune.models.lenet.LeNet5;os.system",
        "adamwprune.models.\0lenet.x",
    ),
    *(
        "adamwprune.models.../models.lenet.LeNet5",
        "adamwprune.models.lenet.Le\u039det5",
        "\u0430damwprune.models.lenet.LeNet5",
    ),
    *(
        "adamwprune.models.lenet.\uff2ceNet5",
        "adamwprune.models.lenet.LeNet\u06f5",
        "adamwprune\uff0emodels.lenet.LeNet5",
    ),
    *(
        "adamwprune.models.lenet.LeNet5\u200b",
        "adamwprune.models.lenet.LeNet5\u202e",
        "\ufeffadamwprune.models.lenet.LeNet5",
    ),
    *("adamwprune.Models.lenet.LeNet5", "ADAMWPRUNE.models.lenet.LeNet5", "adamwprune.models.lenet.lenet5"),
    *(
        "adamwprune.targets.importlib.import_module",
        "adamwprune.targets.build",
        "adamwprune.targets.importlib",
    ),
    *(
        "adamwprune.run_directory.os.system",
        "adamwprune.run_directory.subprocess.run",
        "adamwprune.run_directory.claim",
    ),
    *("adamwprune.run_directory.write_text", "adamwprune.launchers.base.execute", "adamwprune.launch.launch"),
    *(
        "adamwprune.sweep.run_sweep",
        "adamwprune.corpora.build.make_corpus",
        "adamwprune.data.files.pickles.read_arrays",
    ),
    *("adamwprune.data.files.pickles.pickle.loads", "adamwprune.data.files.packages.subprocess.run"),
    *(
        "adamwprune.data.files.hub.load",
        "adamwprune.configure.__main__.main",
        "adamwprune.track.__main__.main",
    ),
    *("adamwprune.training.checkpoint.torch.load", "adamwprune.training.checkpoint.shutil.rmtree"),
    *(
        "adamwprune.training.checkpoint.remove_old",
        "adamwprune.trackers.dashboard.serve",
        "adamwprune.export.files.write",
    ),
    *(
        "adamwprune.pruning.importlib.import_module",
        "adamwprune.pruning.__getattr__",
        "adamwprune.optim.sgd.sgd",
    ),
    *(
        "adamwprune.command_line.sys.exit",
        "adamwprune.resolvers.OmegaConf.load",
        "adamwprune.composition.compose",
    ),
)

# No text at all.
NO_NAMES = (7, True, 1.5, [], ["os.system"], {"x": "os.system"}, "", ".", "..", "...", "${oc.env:PATH}")

NAMES = (*ELSEWHERE, *BY_WAY_OF_OURS)
