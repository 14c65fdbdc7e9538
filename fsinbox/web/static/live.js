// Keeps the overview current: fetches the part that changes and replaces the sections that differ, so that
// nothing moves, and what is focused or selected stays so. Rests while the page is hidden.
"use strict";

(() => {
  const live = document.getElementById("live");
  const freshness = document.getElementById("freshness");
  const button = document.getElementById("updates");
  const INTERVAL = 2000;
  let timer = 0;
  let paused = false;

  const inUse = (element) => {
    const selection = getSelection();
    return (
      element.contains(document.activeElement) ||
      (!selection.isCollapsed && selection.containsNode(element, true))
    );
  };

  const replace = (html) => {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    for (const now of live.querySelectorAll("section[id]")) {
      const then = fresh.getElementById(now.id);
      if (then && then.outerHTML !== now.outerHTML && !inUse(now)) {
        now.replaceWith(document.importNode(then, true));
      }
    }
    const level = fresh.querySelector("#verdict strong");
    if (level) document.title = `${level.textContent}: overview - fsinbox`;
    freshness.textContent = `As of ${fresh.getElementById("at").dataset.at} UTC.`;
    freshness.className = "";
  };

  const update = async () => {
    const begun = performance.now();
    try {
      const response = await fetch(live.dataset.source, {
        headers: { Accept: "text/html" },
        signal: AbortSignal.timeout(20000),
      });
      if (!response.ok) throw new Error(`status ${response.status}`);
      const html = await response.text();
      if (!paused) replace(html);
    } catch (error) {
      freshness.textContent = `No answer (${error.message}): the figures are old. Asking again.`;
      freshness.className = "stale";
    }
    plan(Math.max(INTERVAL, 10 * (performance.now() - begun))); // a large inbox is asked less often
  };

  const plan = (delay) => {
    clearTimeout(timer);
    if (!paused && !document.hidden) timer = setTimeout(update, delay);
  };

  document.addEventListener("visibilitychange", () => plan(0));
  button.addEventListener("click", () => {
    paused = !paused;
    button.textContent = paused ? "Resume updates" : "Pause updates";
    if (paused) freshness.textContent = freshness.textContent.replace("As of", "Paused, as of");
    plan(0);
  });
  button.hidden = false;
  plan(INTERVAL);
})();
