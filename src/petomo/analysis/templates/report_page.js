// Starts the viewers, marks the section in sight, and on a live page fetches what has changed.

async function start(section) {
  for (const block of section.querySelectorAll("script[data-name]")) data[block.dataset.name] = JSON.parse(block.textContent);
  for (const place of section.querySelectorAll("[data-viewer]")) {
    try {
      await viewers[place.dataset.viewer](place);
      place.dataset.ready = "yes";
    } catch (error) {
      place.append(el("p", { class: "missing" }, `This browser cannot show the viewer: ${error.message}`));
      place.dataset.ready = "no";
    }
  }
}

function watchSections() {
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const bar = document.querySelector("nav");
  const observer = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) {
      if (!isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      const link = links.get(target.id);
      link.setAttribute("aria-current", "true");
      bar.scrollTo({ left: link.offsetLeft - bar.clientWidth / 2 + link.clientWidth / 2 });
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  document.querySelectorAll("main section").forEach((section) => observer.observe(section));
  return observer;
}

// Put the new parts of a fetched page in place; what the reader sees does not move.
async function refresh(text, observer) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  const focused = document.activeElement?.dataset?.key;
  const open = new Set([...document.querySelectorAll("details[open]")].map((d) => d.dataset.key));
  const changed = [...fresh.querySelectorAll("header, main section")].filter((part) => {
    const old = document.getElementById(part.id);
    return old.dataset.hash !== part.dataset.hash;
  });
  const anchor = [...document.querySelectorAll("main section")].find((s) => s.getBoundingClientRect().bottom > 60);
  const where = anchor?.getBoundingClientRect().top;
  for (const part of changed) {
    const old = document.getElementById(part.id);
    const node = document.adoptNode(part);
    node.style.minHeight = `${old.offsetHeight}px`; // no jump while the viewers are made
    node.querySelectorAll("details").forEach((d) => (d.open = open.has(d.dataset.key)));
    if (node.id === "slices") delete data.atoms;
    old.replaceWith(node);
    if (node.tagName === "SECTION") observer.observe(node);
    await start(node);
    node.style.minHeight = "";
  }
  if (focused) document.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  const now = anchor && document.getElementById(anchor.id).getBoundingClientRect().top;
  if (where < 60 && Math.abs(now - where) > 1) window.scrollBy({ top: now - where, behavior: "instant" });
}

async function follow(observer) {
  let tag = null;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 2000));
    if (document.hidden) continue;
    let words;
    try {
      const answer = await fetch(location.pathname, { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
      if (answer.status === 200) {
        tag = answer.headers.get("ETag");
        await refresh(await answer.text(), observer);
      }
      words = `live; looked at ${new Date().toLocaleTimeString()}`;
    } catch {
      words = "no longer live: the run has ended or stopped; this is its last state";
    }
    document.getElementById("live").textContent = words;
  }
}

(async () => {
  const observer = watchSections();
  for (const section of document.querySelectorAll("main section")) await start(section);
  document.documentElement.dataset.ready = "yes";
  if (document.body.dataset.live) follow(observer);
})();
