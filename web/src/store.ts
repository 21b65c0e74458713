/** Where conversations stay: this tab's session storage, and this device's IndexedDB unless that is turned off. */

import { merged, parseConversation, type Conversation } from "./conversation";

/** Session storage: it survives a reload, is private to this tab and is deleted when the tab is closed. */
export class TabStorage {
  constructor(private readonly prefix: string) {}

  read(name: string): string | null {
    try {
      return sessionStorage.getItem(`${this.prefix}#${name}`);
    } catch {
      return null;
    }
  }

  /** Returns false when the quota is exceeded or storage is blocked; the page then works until it is reloaded. */
  write(name: string, text: string): boolean {
    try {
      if (text) sessionStorage.setItem(`${this.prefix}#${name}`, text);
      else sessionStorage.removeItem(`${this.prefix}#${name}`);
      return true;
    } catch {
      return false;
    }
  }
}

export interface Preferences {
  /** "" follows the system. */
  theme: "" | "light" | "dark";
  /** "" follows the browser. */
  language: string;
  /** Whether conversations stay on this device. */
  keep: boolean;
}

const DEFAULTS: Preferences = { theme: "", language: "", keep: true };

export function readPreferences(prefix: string): Preferences {
  try {
    const saved = JSON.parse(localStorage.getItem(`${prefix}#preferences`) ?? "{}") as Partial<Preferences> | null;
    return {
      theme: saved?.theme === "light" || saved?.theme === "dark" ? saved.theme : "",
      language: typeof saved?.language === "string" ? saved.language.slice(0, 8) : "",
      keep: saved?.keep !== false,
    };
  } catch {
    return { ...DEFAULTS };
  }
}

export function writePreferences(prefix: string, preferences: Preferences): void {
  try {
    if (JSON.stringify(preferences) === JSON.stringify(DEFAULTS)) localStorage.removeItem(`${prefix}#preferences`);
    else localStorage.setItem(`${prefix}#preferences`, JSON.stringify(preferences));
  } catch {
    // Blocked or full: they hold until the page is reloaded.
  }
}

const STORE = "conversations";

/** The conversations on this device. Every method fails when the browser gives no access to it. */
export class DeviceStore {
  private opening: Promise<IDBDatabase> | null = null;

  constructor(private readonly name: string) {}

  private open(): Promise<IDBDatabase> {
    this.opening ??= new Promise<IDBDatabase>((resolve, reject) => {
      const request = indexedDB.open(this.name, 1);
      request.onupgradeneeded = () => {
        if (!request.result.objectStoreNames.contains(STORE))
          request.result.createObjectStore(STORE, { keyPath: "id" });
      };
      request.onsuccess = () => {
        const database = request.result;
        database.onversionchange = () => {
          database.close();
          this.opening = null;
        };
        resolve(database);
      };
      request.onerror = () => reject(request.error ?? new Error("The database cannot be opened."));
      request.onblocked = () => reject(new Error("The database is in use by another version of the page."));
    });
    this.opening.catch(() => {
      this.opening = null;
    });
    return this.opening;
  }

  private async run<Result>(
    mode: IDBTransactionMode,
    action: (store: IDBObjectStore) => IDBRequest<Result> | undefined,
  ): Promise<Result | undefined> {
    const database = await this.open();
    return new Promise((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const request = action(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request ? request.result : undefined);
      transaction.onerror = transaction.onabort = () =>
        reject(transaction.error ?? new Error("The database rejected a change."));
    });
  }

  /** Stores the conversation, with the turns that another tab has added to it. */
  async save(conversation: Conversation): Promise<void> {
    const snapshot = structuredClone(conversation);
    await this.run("readwrite", (store) => {
      const request = store.get(snapshot.id);
      request.onsuccess = () => {
        store.put(merged(snapshot, request.result === undefined ? null : parseConversation(request.result)));
      };
      return undefined;
    });
  }

  async load(id: string): Promise<Conversation | null> {
    return parseConversation(await this.run("readonly", (store) => store.get(id) as IDBRequest<unknown>));
  }

  /** All that can be read, the latest first; damaged ones are left where they are. */
  async list(): Promise<Conversation[]> {
    const all = (await this.run("readonly", (store) => store.getAll() as IDBRequest<unknown[]>)) ?? [];
    const conversations = all
      .map(parseConversation)
      .filter((each) => each !== null && each.turns.length > 0) as Conversation[];
    return conversations.sort((a, b) => Number(b.pinned) - Number(a.pinned) || b.updatedAt - a.updatedAt);
  }

  async remove(id: string): Promise<void> {
    await this.run("readwrite", (store) => store.delete(id));
  }

  async clear(): Promise<void> {
    await this.run("readwrite", (store) => store.clear());
  }
}

/** Whether a conversation has all of these words, in its title or texts. */
export function matches(conversation: Conversation, query: string): boolean {
  const words = query.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const text = [conversation.title, ...conversation.turns.map((turn) => turn.text)].join("\n").toLocaleLowerCase();
  return words.every((word) => text.includes(word));
}
