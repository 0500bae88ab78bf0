// Keeps the page as the coordinator has it: puts in, one at a time, the panels that changed. The page reads the same
// without this script. Nothing here comes from anywhere but this origin.
"use strict";

(() => {
  const link = document.getElementById("link");
  const waiting = new Map();
  let busy = false;

  const tell = (text) => { link.textContent = text; };

  // What is being read stays: a panel with the keyboard's focus or a selection in it is replaced once that has gone.
  const inUse = (element) => {
    const selection = document.getSelection();
    const selected = selection && !selection.isCollapsed && element.contains(selection.anchorNode);
    return selected || (element.contains(document.activeElement) && document.activeElement !== element);
  };

  const putIn = (element, html) => {
    const open = [...element.querySelectorAll("details")].map((one) => one.open);
    const scrolled = [...element.querySelectorAll(".scroll")].map((one) => [one.scrollLeft, one.scrollTop]);
    element.innerHTML = html;
    element.querySelectorAll("details").forEach((one, place) => { one.open = open[place] || false; });
    element.querySelectorAll(".scroll").forEach((one, place) => {
      if (scrolled[place]) [one.scrollLeft, one.scrollTop] = scrolled[place];
    });
  };

  const step = () => {
    let done = false;
    for (const [id, html] of waiting) {
      const element = document.getElementById(id);
      if (element && inUse(element)) continue;
      waiting.delete(id);
      if (element) putIn(element, html);
      done = true;
      break;
    }
    busy = done && waiting.size > 0;
    if (busy) setTimeout(step, 0);
  };

  const source = new EventSource(`${document.body.dataset.events}?since=${document.body.dataset.rendering}`);
  source.addEventListener("panels", (event) => {
    const panels = JSON.parse(event.data);
    for (const [id, html] of Object.entries(panels)) waiting.set(id, html);
    // More rows than the page has places for, as when many join: it is loaded anew.
    if (Object.keys(panels).some((id) => panels[id] && !document.getElementById(id))) { location.reload(); return; }
    tell(`Live, ${new Date().toLocaleTimeString()}`);
    if (!busy) { busy = true; setTimeout(step, 0); }
  });
  source.addEventListener("open", () => tell("Live"));
  source.addEventListener("error", () => tell("The coordinator does not answer; trying again"));
  addEventListener("focusout", () => { if (!busy && waiting.size) { busy = true; setTimeout(step, 0); } });
  addEventListener("pagehide", () => source.close());
})();
