/** Tasks that run at once: files that are removed, or folders that are synced. */
const tasksAtOnce = 4

/** Tasks between two rests: a few milliseconds. */
const tasksPerPiece = 32

/**
 * Runs a task for each item, some at a time.
 * @param rest is waited for after each piece of the work
 * @throws what the first failing task threw, when all of its piece have ended
 */
export async function inParallel<Item>(
  items: readonly Item[],
  task: (item: Item) => Promise<void>,
  rest?: () => Promise<void>,
): Promise<void> {
  for (let at = 0; at < items.length; at += tasksPerPiece) {
    await runPiece(items.slice(at, at + tasksPerPiece), task)
    await rest?.()
  }
}

async function runPiece<Item>(items: readonly Item[], task: (item: Item) => Promise<void>): Promise<void> {
  const left = items.values()
  const lane = async () => {
    for (const item of left) await task(item)
  }
  const lanes = await Promise.allSettled(Array.from({ length: tasksAtOnce }, lane))
  const failed = lanes.find((result) => result.status === 'rejected')
  if (failed !== undefined) throw failed.reason
}
