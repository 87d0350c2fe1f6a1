# What dsv3 needs: a thread library and Eigen, by its package or, failing that, by its headers. Used
# by the build and, installed, by dsv3-config.cmake.
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
if(NOT TARGET Eigen3::Eigen)
  find_package(Eigen3 QUIET NO_MODULE)
endif()
if(NOT TARGET Eigen3::Eigen)
  find_path(DSV3_EIGEN_INCLUDE_DIR Eigen/Core PATH_SUFFIXES eigen3)
  if(NOT DSV3_EIGEN_INCLUDE_DIR)
    message(FATAL_ERROR "dsv3 needs Eigen 3.4: install it (Debian: libeigen3-dev), or set "
                        "Eigen3_DIR or DSV3_EIGEN_INCLUDE_DIR")
  endif()
  add_library(Eigen3::Eigen INTERFACE IMPORTED)
  set_target_properties(Eigen3::Eigen PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${DSV3_EIGEN_INCLUDE_DIR}")
endif()

# dsv3::tokenizer adds what io/tokenizer.hpp needs: PCRE2 for 8-bit text. Where it is not installed,
# the target is missing, and everything else is as before.
function(dsv3_add_tokenizer_target)
  find_path(DSV3_PCRE2_INCLUDE_DIR pcre2.h)
  find_library(DSV3_PCRE2_LIBRARY pcre2-8)
  if(DSV3_PCRE2_INCLUDE_DIR AND DSV3_PCRE2_LIBRARY AND NOT TARGET dsv3::tokenizer)
    add_library(dsv3::tokenizer INTERFACE IMPORTED GLOBAL)
    set_target_properties(dsv3::tokenizer PROPERTIES
      INTERFACE_INCLUDE_DIRECTORIES "${DSV3_PCRE2_INCLUDE_DIR}"
      INTERFACE_LINK_LIBRARIES "dsv3::dsv3;${DSV3_PCRE2_LIBRARY}")
  endif()
endfunction()

# dsv3::cuda adds what backend/cuda.hpp needs: the CUDA runtime and cuBLASLt, and C++20 for .cu files.
# Where no CUDA Toolkit is installed, the target is missing, and everything else is as before.
function(dsv3_add_cuda_target)
  find_package(CUDAToolkit 12.9 QUIET)
  if(CUDAToolkit_FOUND AND NOT TARGET dsv3::cuda)
    add_library(dsv3::cuda INTERFACE IMPORTED GLOBAL)
    set_target_properties(dsv3::cuda PROPERTIES
      INTERFACE_LINK_LIBRARIES "dsv3::dsv3;CUDA::cudart_static;CUDA::cublasLt"
      INTERFACE_COMPILE_OPTIONS "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>")
  endif()
endfunction()
