// Selecting PCs: by click and touch, by keyboard (arrows, space, shift for a range, control+A), and all that are shown.
export function startSelection(board) {
  const form = document.getElementById("selection");
  if (!form) return;
  const tiles = board.querySelector("[data-tiles]");
  const output = form.querySelector("[data-selected]");
  const all = board.querySelector("[data-select-all]");
  let anchor = null; // the tile a range begins at

  const shown = () => [...tiles.children].filter((tile) => !tile.hidden);
  const picked = () => shown().filter((tile) => pickOf(tile).checked);
  const pickOf = (tile) => tile.querySelector(".pick");

  function show() {
    const chosen = picked();
    const names = chosen.slice(0, 6).map((tile) => tile.dataset.title);
    const more = chosen.length > 6 ? ` and ${chosen.length - 6} more` : "";
    const text = chosen.length ? `${chosen.length} selected: ${names.join(", ")}${more}` : "";
    if (output.textContent !== text) output.textContent = text;
    document.body.classList.toggle("selecting", chosen.length > 0);
    all.hidden = !shown().length;
    oneTabStop();
  }

  // One stop of the Tab key for all tiles; the arrows go from there.
  function oneTabStop() {
    const visible = shown();
    const current = visible.find((tile) => tile === document.activeElement?.closest(".tile")) ?? visible.find((tile) => tile === anchor) ?? visible[0];
    for (const tile of tiles.children) {
      for (const control of tile.querySelectorAll(".pick, .info, .face a")) control.tabIndex = tile === current ? 0 : -1;
    }
  }

  function range(tile, checked) {
    const visible = shown();
    const [from, to] = [visible.indexOf(anchor), visible.indexOf(tile)].sort((a, b) => a - b);
    for (const each of visible.slice(from < 0 ? to : from, to + 1)) pickOf(each).checked = checked;
  }

  function pick(tile, checked, withRange) {
    if (withRange && anchor) range(tile, checked);
    else pickOf(tile).checked = checked;
    anchor = tile;
    show();
  }

  // The neighbour in the grid as it is drawn: above and below go by place, not by number.
  function neighbour(tile, key) {
    const visible = shown();
    const index = visible.indexOf(tile);
    if (key === "ArrowRight") return visible[index + 1];
    if (key === "ArrowLeft") return visible[index - 1];
    if (key === "Home") return visible[0];
    if (key === "End") return visible.at(-1);
    const step = key === "ArrowDown" ? 1 : -1;
    const { offsetTop, offsetLeft } = tile;
    for (let next = index + step; visible[next]; next += step) {
      if (visible[next].offsetTop !== offsetTop && visible[next].offsetLeft === offsetLeft) return visible[next];
    }
    return undefined;
  }

  tiles.addEventListener("click", (event) => {
    const cover = event.target.closest(".cover, .pick");
    if (!cover) return;
    const tile = cover.closest(".tile");
    if (cover.matches(".pick")) return void pick(tile, cover.checked, event.shiftKey);
    event.preventDefault(); // a label would lose the shift key, and select text
    pickOf(tile).focus({ preventScroll: true });
    pick(tile, !pickOf(tile).checked, event.shiftKey);
  });
  tiles.addEventListener("mousedown", (event) => event.shiftKey && event.target.closest(".cover") && event.preventDefault());

  tiles.addEventListener("keydown", (event) => {
    if (!event.target.matches(".pick") || event.altKey) return;
    const tile = event.target.closest(".tile");
    if (event.key === "a" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      return selectAll();
    }
    if (event.key === "Escape") return selectNone();
    if (event.key === " " && event.shiftKey) {
      event.preventDefault();
      return pick(tile, true, true);
    }
    if (!/^(Arrow|Home$|End$)/.test(event.key)) return;
    event.preventDefault();
    const next = neighbour(tile, event.key);
    if (!next) return;
    if (event.shiftKey) {
      anchor ??= tile;
      pickOf(tile).checked = true;
      pick(next, true, true);
    }
    pickOf(next).focus();
  });
  tiles.addEventListener("focusin", oneTabStop);
  tiles.addEventListener("change", show);

  function selectAll() {
    for (const tile of shown()) pickOf(tile).checked = true;
    show();
  }

  function selectNone() {
    const within = form.contains(document.activeElement);
    const first = picked()[0];
    for (const tile of tiles.children) pickOf(tile).checked = false;
    show();
    if (within) pickOf(first ?? shown()[0])?.focus();
  }

  all.addEventListener("click", selectAll);
  form.querySelector("[data-select-none]").addEventListener("click", selectNone);
  board.addEventListener("board:changed", show);
  board.addEventListener("board:filtered", show);
  board.addEventListener("board:ordered", selectNone);
  show();
}
