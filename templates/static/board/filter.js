// Filters: state, class and text. Hidden tiles lose their tick: nobody orders what they cannot see.
export function startFilter(board) {
  const form = board.querySelector(".filter");
  const clear = form.querySelector("[data-clear-filter]");
  const tiles = board.querySelector("[data-tiles]");

  function filter() {
    const data = new FormData(form);
    const states = data.getAll("state");
    const classes = data.getAll("class");
    const words = data.get("q").toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const tile of tiles.children) {
      const fits =
        (!states.length || states.includes(tile.dataset.state)) &&
        (!classes.length || classes.includes(tile.dataset.class)) &&
        words.every((word) => tile.dataset.words.includes(word));
      tile.hidden = !fits;
      shown += fits;
      if (!fits) tile.querySelector(".pick").checked = false;
    }
    board.dispatchEvent(new Event("board:filtered"));
    clear.hidden = !(states.length || classes.length || words.length);
    board.querySelector("[data-none]").hidden = tiles.children.length > 0;
    board.querySelector("[data-none-shown]").hidden = shown > 0 || !tiles.children.length;
    const query = new URLSearchParams([...data].filter(([, value]) => value)).toString();
    const kept = new URLSearchParams(location.search).has("projector") ? "projector" : "";
    history.replaceState(null, "", `?${[kept, query].filter(Boolean).join("&")}`.replace(/\?$/, location.pathname));
  }

  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => (event.preventDefault(), filter()));
  clear.addEventListener("click", () => {
    for (const box of form.querySelectorAll("[type=checkbox]")) box.checked = false;
    form.elements.q.value = "";
    filter();
    form.elements.q.focus();
  });
  board.addEventListener("board:changed", filter);
  filter();
}
