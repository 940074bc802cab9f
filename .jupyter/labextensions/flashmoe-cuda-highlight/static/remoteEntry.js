// Highlights %%cuda cells as C++ in JupyterLab 4.
//
// JupyterLab chooses the language of a cell by the notebook's kernel alone. This extension watches the code cells and
// sets the MIME type of those that start with %%cuda, which is what the editor picks its language by.
//
// It is a module-federation container written by hand, so that it needs no bundler: JupyterLab loads this file, looks
// for the container under the package's name in window._JUPYTERLAB, calls init(scope) with the modules it shares, and
// asks get("./extension") for a function that returns the module whose default export is the plugin.
(() => {
  "use strict";

  const NAME = "flashmoe-cuda-highlight";
  const CUDA = "text/x-c++src";
  const MAGIC = /^\s*%%cuda\b/;

  const watched = new WeakSet();     // cells whose signals are connected
  const ordinary = new WeakMap();    // cell → the MIME type it had before it became CUDA

  function highlight(cell) {
    const model = cell.model;
    if (cell.isDisposed || !model) return;
    if (MAGIC.test(model.sharedModel.getSource())) {
      if (model.mimeType !== CUDA) {
        ordinary.set(cell, model.mimeType);
        model.mimeType = CUDA;
      }
    } else if (model.mimeType === CUDA && ordinary.has(cell)) {
      model.mimeType = ordinary.get(cell);
      ordinary.delete(cell);
    }
  }

  function watch(cell, languages) {
    if (cell.model.type !== "code" || watched.has(cell)) return;
    watched.add(cell);
    highlight(cell);
    cell.model.contentChanged.connect(() => highlight(cell));
    // The notebook sets every cell's type anew when the kernel tells its language. The editor then loads that language,
    // and would apply it over ours if ours came first: so wait for the same load, which the editor asked for before us.
    cell.model.mimeTypeChanged.connect(async (model) => {
      await languages.getLanguage(model.mimeType);
      highlight(cell);
    });
  }

  async function watchNotebook(panel, languages) {
    await panel.context.ready;
    const watchCells = () => panel.content.widgets.forEach((cell) => watch(cell, languages));
    watchCells();
    // Widgets are made after the model reports the new cell.
    panel.content.model.cells.changed.connect(() => setTimeout(watchCells, 0));
  }

  const makePlugin = (INotebookTracker, IEditorLanguageRegistry) => ({
    id: `${NAME}:plugin`,
    description: "Highlights %%cuda cells as C++.",
    autoStart: true,
    requires: [INotebookTracker, IEditorLanguageRegistry],
    activate: (app, tracker, languages) => {
      tracker.forEach((panel) => watchNotebook(panel, languages));
      tracker.widgetAdded.connect((_, panel) => watchNotebook(panel, languages));
    },
  });

  let scope;

  // A module that JupyterLab shares: its version, its loader, and the factory the loader resolves to.
  async function shared(name) {
    const [version] = Object.values(scope[name]);
    const factory = await version.get();
    return factory();
  }

  const container = {
    init: async (sharedScope) => { scope = sharedScope; },
    get: async (module) => {
      if (module !== "./extension") throw new Error(`${NAME} has no module ${module}`);
      const { INotebookTracker } = await shared("@jupyterlab/notebook");
      const { IEditorLanguageRegistry } = await shared("@jupyterlab/codemirror");
      const plugin = makePlugin(INotebookTracker, IEditorLanguageRegistry);
      return () => ({ __esModule: true, default: plugin });
    },
  };

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB[NAME] = container;
})();
