// Keeps a page current: asks for it again, and is answered 304 while nothing has changed (web/version.py).
// What has is put in place, node by node: what is the same stays, so that nothing moves, and what is focused,
// selected, open or ticked is left alone. Rests while the page is hidden.
"use strict";

(() => {
  const live = document.getElementById("live");
  const freshness = document.getElementById("freshness");
  const news = document.getElementById("news");
  const button = document.getElementById("updates");
  const INTERVAL = 2000;
  const QUIET = 30000; // between two announcements to who hears the page
  const UNIT = "section, tr, li"; // what is not changed at all while the reader is in it
  let { tag, at, says } = live.dataset;
  let sent = null; // the page as it is now, while not all of it is shown
  let announced = -QUIET;
  let timer = 0;
  let paused = false;

  const inUse = (node) => {
    const selection = getSelection();
    return (
      node.contains(document.activeElement) ||
      (!selection.isCollapsed && selection.containsNode(node, true)) ||
      (node.nodeType === Node.ELEMENT_NODE && node.querySelector("details[open]") !== null)
    );
  };

  const isTicked = () => live.querySelector(":checked") !== null;

  const tell = (text, kind = "") => {
    freshness.textContent = text;
    freshness.className = kind;
  };

  // These four return whether all that differed was put in place.

  const morph = (now, then) => {
    if (now.isEqualNode(then)) return true;
    const element = now.nodeType === Node.ELEMENT_NODE;
    if (element && now.matches(UNIT) && inUse(now)) return false;
    if (element && now.matches("[data-rows]")) return rows(now, then);
    if (element && now.nodeName === then.nodeName && now.childNodes.length === then.childNodes.length)
      return alike(now, then);
    if (inUse(now)) return false;
    now.replaceWith(document.importNode(then, true));
    return true;
  };

  const alike = (now, then) => {
    for (const name of now.getAttributeNames()) if (!then.hasAttribute(name)) now.removeAttribute(name);
    for (const { name, value } of then.attributes) now.setAttribute(name, value);
    const pairs = [...now.childNodes].map((child, index) => [child, then.childNodes[index]]);
    return pairs.map(([child, other]) => morph(child, other)).every(Boolean);
  };

  const rows = (now, then) => {
    // Their ids tell which are the same.
    const wanted = new Set([...then.children].map((row) => row.id));
    const left = [...now.children].filter((row) => !wanted.has(row.id));
    let whole = true;
    for (const row of left) {
      if (inUse(row)) whole = false;
      else row.remove();
    }
    let place = now.firstElementChild;
    const there = new Map([...now.children].map((row) => [row.id, row]));
    for (const row of then.children) {
      while (place && !wanted.has(place.id)) place = place.nextElementSibling;
      const same = there.get(row.id);
      if (!same) now.insertBefore(document.importNode(row, true), place);
      else if (same !== place) now.insertBefore(same, place);
      else place = place.nextElementSibling;
      if (same && !morph(same, row)) whole = false;
    }
    return whole;
  };

  const show = () => {
    const fresh = sent.getElementById("live");
    document.title = sent.title;
    if (isTicked()) tell(`As of ${at} UTC. It has changed since: it is updated once nothing is ticked.`);
    else {
      at = fresh.dataset.at;
      const whole = rows(live, fresh);
      tell(whole ? `As of ${at} UTC.` : `As of ${at} UTC; what is open, focused or selected is older.`);
      if (whole) sent = null;
      if (says !== fresh.dataset.says && performance.now() - announced >= QUIET) {
        news.textContent = says = fresh.dataset.says;
        announced = performance.now();
      }
    }
  };

  const receive = async (response) => {
    // Returns whether to go on.
    if (response.status === 304) {
      if (sent) show();
      else tell(`As of ${at} UTC; nothing has changed since.`);
      return true;
    }
    if (!response.ok && response.status !== 404) throw new Error(`status ${response.status}`);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    if (response.ok) {
      if (response.redirected) history.replaceState(null, "", response.url); // the element has moved on
      tag = response.headers.get("ETag");
      sent = page;
      show();
      return true;
    }
    // The element is no more; or the site was started anew, and a session's address ended with it.
    tell(page.querySelector("main p").textContent, "stale");
    news.textContent = freshness.textContent;
    button.hidden = true;
    return false;
  };

  const update = async () => {
    const begun = performance.now();
    try {
      const response = await fetch(location.href, {
        headers: { Accept: "text/html", "If-None-Match": tag },
        cache: "no-store",
        signal: AbortSignal.timeout(20000),
      });
      if (!paused && !(await receive(response))) return;
    } catch (error) {
      tell(`No answer (${error.message}): this page is old. Asking again.`, "stale");
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
