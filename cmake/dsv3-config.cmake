# find_package(dsv3): the targets dsv3::dsv3, dsv3::native for programs that run where they are
# compiled, dsv3::tokenizer where PCRE2 is installed, and dsv3::cuda where the CUDA Toolkit is.
include("${CMAKE_CURRENT_LIST_DIR}/dsv3-dependencies.cmake")
include("${CMAKE_CURRENT_LIST_DIR}/dsv3-targets.cmake")
dsv3_add_tokenizer_target()
dsv3_add_cuda_target()
