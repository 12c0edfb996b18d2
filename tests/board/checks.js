// What a page must hold for everybody, asked of the page itself. Returns what is wrong, as text.
() => {
  const wrong = [];
  const shown = (element) => element.checkVisibility({ opacityProperty: false, visibilityProperty: true });
  const describe = (element) => element.outerHTML.slice(0, 120).replace(/\s+/g, " ");

  // Every control has a name, every dialog a label, every id is there once, what is referred to exists.
  const text = (id) => document.getElementById(id)?.textContent.trim() ?? "";
  const name = (element) =>
    (element.getAttribute("aria-labelledby") ?? "").split(/\s+/).filter(Boolean).map(text).join(" ").trim() ||
    element.getAttribute("aria-label") ||
    [...(element.labels ?? [])].map((label) => label.textContent.trim()).join(" ").trim() ||
    (element.matches("button, a, summary") ? element.textContent.trim() : "");
  for (const control of document.querySelectorAll("a[href], button, input:not([type=hidden]), select, textarea, dialog[open], [role=dialog], progress, [role=search], fieldset")) {
    const legend = control.matches("fieldset") && control.querySelector("legend")?.textContent.trim();
    if (shown(control) && !name(control) && !legend) wrong.push(`no name: ${describe(control)}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) wrong.push(`id twice: ${id}`);
  for (const attribute of ["aria-labelledby", "aria-describedby", "for", "popovertarget"]) {
    for (const element of document.querySelectorAll(`[${attribute}]`)) {
      if (element.matches("dialog:not([open])")) continue;
      for (const id of element.getAttribute(attribute).split(/\s+/)) if (!document.getElementById(id)) wrong.push(`${attribute} names ${id}, which is not there`);
    }
  }
  if (document.querySelectorAll("h1").length !== 1) wrong.push("not exactly one h1");
  if (document.querySelectorAll("main").length !== 1) wrong.push("not exactly one main");
  if (!document.documentElement.lang) wrong.push("the page has no language");

  // Nothing is wider than the window.
  const width = document.documentElement.scrollWidth;
  if (width > screen.width && width > window.outerWidth) wrong.push(`the page is ${width} wide`);

  // Targets of a finger are 44 by 44; a link in a line of text is told apart by its padding.
  if (matchMedia("(pointer: coarse)").matches) {
    for (const target of document.querySelectorAll("button, a.button, .cover, .chip-face, .count, .line a, .person a, input[type=search]")) {
      if (!shown(target)) continue;
      const { width, height } = target.getBoundingClientRect();
      if (width < 43.5 || height < 43.5) wrong.push(`target of ${Math.round(width)}x${Math.round(height)}: ${describe(target)}`);
    }
  }

  // Contrast of text by WCAG 2.1 (1.4.3 AA): 4.5, or 3 for large text. Colours are read off a canvas, so that any notation will do.
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((value, i) => (value * a + under[i] * (255 - a)) / 255);
  const ground = (element) => {
    if (!element) return rgba(getComputedStyle(document.documentElement).backgroundColor).slice(0, 3);
    const colour = rgba(getComputedStyle(element).backgroundColor);
    return colour[3] === 255 ? colour.slice(0, 3) : over(colour, ground(element.parentElement));
  };
  const luminance = (colour) => {
    const [r, g, b] = colour.map((value) => value / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const seen = new Set();
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || seen.has(element) || !shown(element) || element.closest(".aside, .skip, .mark, script, :disabled")) continue;
    seen.add(element);
    const style = getComputedStyle(element);
    const behind = ground(element);
    const pair = [luminance(over(rgba(style.color), behind)), luminance(behind)].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) wrong.push(`contrast ${ratio.toFixed(2)}: ${describe(element)}`);
  }
  return wrong;
}
