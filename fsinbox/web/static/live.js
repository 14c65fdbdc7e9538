// Keeps the overview current: asks whether it has changed, and only then is sent the part that changes.
// Replaces the sections that differ, so that nothing moves, and what is focused or selected stays so. Rests
// while the page is hidden.
"use strict";

(() => {
  const live = document.getElementById("live");
  const freshness = document.getElementById("freshness");
  const button = document.getElementById("updates");
  const INTERVAL = 2000;
  let tag = live.dataset.tag;
  let at = "";
  let timer = 0;
  let paused = false;

  const inUse = (element) => {
    const selection = getSelection();
    return (
      element.contains(document.activeElement) ||
      (!selection.isCollapsed && selection.containsNode(element, true))
    );
  };

  const tell = (text, kind = "") => {
    freshness.textContent = text;
    freshness.className = kind;
  };

  const replace = (html) => {
    // Returns whether all that differed was replaced.
    const fresh = new DOMParser().parseFromString(html, "text/html");
    let whole = true;
    for (const now of live.querySelectorAll("section[id]")) {
      const then = fresh.getElementById(now.id);
      if (!then || then.outerHTML === now.outerHTML) continue;
      if (inUse(now)) whole = false;
      else now.replaceWith(document.importNode(then, true));
    }
    const level = fresh.querySelector("#verdict strong");
    if (level) document.title = `${level.textContent}: overview - fsinbox`;
    at = fresh.getElementById("at").dataset.at;
    tell(`As of ${at} UTC.`);
    return whole;
  };

  const update = async () => {
    const begun = performance.now();
    try {
      const response = await fetch(live.dataset.source, {
        headers: { Accept: "text/html", "If-None-Match": tag },
        cache: "no-store",
        signal: AbortSignal.timeout(20000),
      });
      if (response.status === 404) {
        // A session's address ends with the process that made it: no answer will come.
        tell("The site was started anew: open the address that was printed then.", "stale");
        button.hidden = true;
        return;
      }
      if (response.status === 304) {
        if (!paused) tell(`As of ${at} UTC; nothing has changed since.`);
      } else if (response.ok) {
        const html = await response.text();
        if (!paused) {
          tag = replace(html) ? response.headers.get("ETag") : "";
        }
      } else throw new Error(`status ${response.status}`);
    } catch (error) {
      tell(`No answer (${error.message}): the figures are old. Asking again.`, "stale");
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
  at = document.getElementById("at").dataset.at;
  button.hidden = false;
  plan(INTERVAL);
})();
